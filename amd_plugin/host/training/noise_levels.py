"""The noise levels of a turn: the host's uniform draw, then each plugin's sampler in order."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from amd_plugin.config import TrainConfig
from amd_plugin.contract import moved_levels
from amd_plugin.hookspecs import SigmaSampler
from amd_plugin.host.training.batch import Batch

Window = tuple[float, float]


class NoiseLevelSampler:
    """Draws noise levels as fractions of the schedule.

    Args:
        train: the recipe's train section, with the window of turns that have none of their own.
        floors: the lowest level at which samples are re-noised, by exit rung.
        samplers: the plugins' samplers, in the order in which they run.

    Attributes:
        floors: the same levels.
    """

    def __init__(self, train: TrainConfig, floors: Sequence[float], samplers: Sequence[SigmaSampler]):
        self._window, self.floors, self._samplers = train.sigma, floors, samplers

    def __call__(self, batch: Batch, role: str, window: Window | None = None, advantage: Tensor | None = None) -> Tensor:
        """Levels [B] in [0, 1] of the joined batch, for a `role` of `amd_plugin.hookspecs.SigmaSampler`.

        Args:
            batch: the joined batch.
            role: the networks' role in the turn.
            window: (low, high) levels; None for ``train.sigma``.
            advantage: the advantages [B], for the plugins' samplers.

        Raises:
            RunError: for a sampler that fails, or returns something else than levels.
        """
        low, high = window or self._window
        # The guidance term is not matched, so floors do not apply to it.
        lowest = low if role == "guide" else self._lowest(low, batch)
        sigma = batch.uniform(f"sigma {role}", (lowest, high))
        draws = lambda index: batch.generator(f"sigma {role} sampler {index}")  # noqa: E731
        return moved_levels(sigma, self._samplers, draws, role=role, advantage=advantage, step=batch.step)

    def _lowest(self, low: float, batch: Batch) -> float | Tensor:
        """The lowest level, of each sample [B] where rungs have levels of their own."""
        if max(self.floors) <= low:
            return low
        return torch.tensor(self.floors).clamp(min=low)[batch.rungs].to(batch.device, non_blocking=True)
