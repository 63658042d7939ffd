"""The noise levels of a turn: the host's uniform draw, then each plugin's sampler in order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from amd_plugin.config import TrainConfig
from amd_plugin.errors import RunError
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
            RunError: for a sampler that returns a wrong shape or levels outside [0, 1].
        """
        low, high = window or self._window
        # The guidance term is not matched, so floors do not apply to it.
        lowest = low if role == "guide" else self._lowest(low, batch)
        sigma = batch.uniform(f"sigma {role}", (lowest, high))
        for index, sampler in enumerate(self._samplers):
            draws = batch.generator(f"sigma {role} sampler {index}")
            # Copies: what a sampler does to its own changes nothing but what it returns.
            own = None if advantage is None else advantage.clone()
            moved = sampler(sigma.clone(), role=role, advantage=own, step=batch.step, generator=draws)
            sigma = _checked(moved, sigma, sampler)
        return sigma

    def _lowest(self, low: float, batch: Batch) -> float | Tensor:
        """The lowest level, of each sample [B] where rungs have levels of their own."""
        if max(self.floors) <= low:
            return low
        return torch.tensor(self.floors).clamp(min=low)[batch.rungs].to(batch.device, non_blocking=True)


def _checked(moved: Any, sigma: Tensor, sampler: SigmaSampler) -> Tensor:
    """What a sampler made of the levels `sigma` [B]; raises RunError where it is nothing of the kind."""
    if not isinstance(moved, Tensor):
        got = f"{type(moved).__name__}"
    elif moved.shape != sigma.shape or moved.dtype != sigma.dtype or moved.device != sigma.device:
        got = f"a tensor of shape {tuple(moved.shape)}, {moved.dtype}, on {moved.device}"
    elif not ((moved >= 0) & (moved <= 1)).all():
        got = f"levels from {moved.min().item():g} to {moved.max().item():g}"
    else:
        return moved.detach()
    name = f"{sampler.__module__}.{getattr(sampler, '__qualname__', type(sampler).__qualname__)}"
    wanted = f"a new tensor of {len(sigma)} levels in [0, 1], {sigma.dtype} on {sigma.device}"
    raise RunError(f"sigma sampler {name}: must return {wanted}, got {got}")
