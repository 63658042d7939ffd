"""What one update is made of: conditions, exit rung and every random number, for the joined batch of all processes."""

from __future__ import annotations

import torch
from torch import Tensor

from amd_plugin.config import TrainConfig
from amd_plugin.randomness import generator


class Batch:
    """The joined batch of one update, B samples over all processes and micro-batches.

    Every process holds the whole of it, and takes its own rows; the numbers do not depend on how the rows are shared out.

    Args:
        train: sizes and seed.
        sample_shape: of one sample.
        num_classes: of the labels to draw.
        num_rungs: of the student's ladder.
        key: what the update is, e.g. ``(step, "student")``.
        device: where the numbers are drawn.

    Attributes:
        labels: [B]; group_size in a row are alike.
        exit_rung: index of the rung whose prediction is taken, the same for all samples.
    """

    def __init__(
        self, train: TrainConfig, sample_shape: tuple[int, ...], num_classes: int, num_rungs: int,
        key: tuple[object, ...], device: torch.device,
    ):  # fmt: skip
        self._seed, self._key, self._device = train.seed, key, device
        self._shape = (train.batch_size, *sample_shape)
        groups = train.batch_size // train.group_size
        draws = self.generator("labels")
        drawn = torch.randint(num_classes, (groups,), generator=draws, device=device)
        self.labels = drawn.repeat_interleave(train.group_size)
        self.exit_rung = int(torch.randint(num_rungs, (), generator=self.generator("exit rung"), device=device))

    def generator(self, purpose: str) -> torch.Generator:
        """A generator for `purpose`, the same on every process."""
        return generator(self._seed, *self._key, purpose, device=self._device)

    def normal(self, purpose: str) -> Tensor:
        """Standard normal noise [B, ...]."""
        return torch.randn(self._shape, generator=self.generator(purpose), device=self._device)

    def uniform(self, purpose: str, window: tuple[float, float]) -> Tensor:
        """Uniform numbers [B] in `window`."""
        low, high = window
        draws = torch.rand(self._shape[0], generator=self.generator(purpose), device=self._device)
        return low + (high - low) * draws
