"""At which noise levels a turn compares or trains its networks: the host's uniform draw, then each plugin's sampler in turn."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from amd_plugin.config import TrainConfig
from amd_plugin.errors import RunError
from amd_plugin.hookspecs import SigmaSampler
from amd_plugin.host.training.batch import Batch

Window = tuple[float, float]


class NoiseLevelSampler:
    """Draws noise levels, as fractions of the schedule.

    Args:
        train: the levels of a turn that asks for none of its own.
        floors: by exit rung, the lowest level that its samples are re-noised to.
        samplers: in the order in which they take part.
    """

    def __init__(self, train: TrainConfig, floors: Sequence[float], samplers: Sequence[SigmaSampler]):
        self._window, self._floors, self._samplers = train.sigma, floors, samplers

    def __call__(self, batch: Batch, role: str, window: Window | None, advantage: Tensor | None, step: int) -> Tensor:
        """Levels [B] of the joined batch, for `role` as `amd_plugin.hookspecs.SigmaSampler` says.

        Raises:
            RunError: for a sampler that returns anything else.
        """
        low, high = window or self._window
        # What the guidance term sees is not matched there.
        low = low if role == "guide" else max(low, self._floors[batch.exit_rung])
        sigma = batch.uniform(f"sigma {role}", (low, high))
        for index, sampler in enumerate(self._samplers):
            draws = batch.generator(f"sigma {role} sampler {index}")
            moved = sampler(sigma, role=role, advantage=advantage, step=step, generator=draws)
            if moved.shape != sigma.shape or not ((moved >= 0) & (moved <= 1)).all():
                raise RunError(f"sigma sampler {sampler!r}: must return {len(sigma)} levels in [0, 1], got {moved}")
            sigma = moved
        return sigma
