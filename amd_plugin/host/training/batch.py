"""What one update is made of: conditions, exit rung and every random number, for the joined batch of all processes."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from amd_plugin.config import TrainConfig
from amd_plugin.randomness import generator

if TYPE_CHECKING:
    from amd_plugin.tasks import Task


class Batch:
    """The joined batch of one update, B samples over all processes and micro-batches.

    Every process holds the whole of it, and takes its own rows; the numbers do not depend on how the rows are shared out.

    Args:
        train: sizes and seed.
        sample_shape: of one sample.
        task: draws what to ask for.
        num_rungs: of the student's ladder.
        key: what the update is, e.g. ``(step, "student")``.
        position: how many batches came before it.
        device: where the numbers are drawn.

    Attributes:
        labels: [B]; group_size in a row are alike.
        position: how many batches came before it.
        exit_rung: index of the rung whose prediction is taken, the same for all samples.
        real: [B, ...], real samples that students start from, where they do.
    """

    def __init__(
        self, train: TrainConfig, sample_shape: tuple[int, ...], task: Task, num_rungs: int,
        key: tuple[object, ...], position: int, device: torch.device,
    ):  # fmt: skip
        self._seed, self._key, self._device, self.position = train.seed, key, device, position
        self._shape = (train.batch_size, *sample_shape)
        groups = train.batch_size // train.group_size
        drawn = task.draw_labels(position, groups, self.generator("labels")).to(device)
        self.labels = drawn.repeat_interleave(train.group_size)
        self._group_size, self.real = train.group_size, torch.empty(0)
        self.exit_rung = int(torch.randint(num_rungs, (), generator=self.generator("exit rung"), device=device))

    def again(self, update: int) -> Batch:
        """The same samples asked for, with other random numbers: for a later `update` that uses this one's rollouts."""
        other = copy.copy(self)
        other._key = (*self._key, "again", update)
        return other

    def take(self, real: Tensor, labels: Tensor) -> None:
        """Starts every group from a real sample [groups, ...], and asks for what it shows."""
        self.real, self.labels = (x.repeat_interleave(self._group_size, 0) for x in (real, labels))

    def generator(self, *purpose: object) -> torch.Generator:
        """A generator for `purpose`, the same on every process."""
        return generator(self._seed, *self._key, *purpose, device=self._device)

    def draws(self, purpose: str, rows: slice) -> list[torch.Generator]:
        """A generator for each of `rows`."""
        return [self.generator(purpose, row) for row in range(rows.start, rows.stop)]

    def normal(self, purpose: str) -> Tensor:
        """Standard normal noise [B, ...]."""
        return torch.randn(self._shape, generator=self.generator(purpose), device=self._device)

    def uniform(self, purpose: str, window: tuple[float, float]) -> Tensor:
        """Uniform numbers [B] in `window`."""
        low, high = window
        draws = torch.rand(self._shape[0], generator=self.generator(purpose), device=self._device)
        return low + (high - low) * draws
