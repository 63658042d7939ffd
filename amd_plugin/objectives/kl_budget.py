"""A budget of divergence from the teacher, and the tilt of the reward that spends it: running values by exit rung."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from amd_plugin.maths.kl_budget import tilt_for
from amd_plugin.maths.sharpening import LARGEST

MOMENTUM = 0.98  # of the running mean of tilts, with bias correction
REACH = 3.0  # spreads of the reward at which advantages are clipped: nearly none are, and so the tilt is hardly bounded


class KLBudget:
    """The sharpening lambda that spends `nats`, measured batch by batch on the student's samples.

    The samples are taken for those of a student that is tilted already, as it is at the fixed point. So the budget is that of
    the fixed point, and a student whose samples agree more and more is not tilted further and further.

    Args:
        nats: budget of divergence, at least 0.

    Attributes:
        nats: budget as given.
    """

    def __init__(self, nats: float):
        self.nats = nats
        self._updates: dict[int, int] = {}
        self._tilt: dict[int, float] = {}

    def tilt(self, rung: int = 0) -> float:
        """The running lambda of an exit rung; 0 before its first rewards that differ."""
        return self._tilt.get(rung, 0.0)

    def tilts(self, rungs: Tensor) -> Tensor:
        """The running lambdas [B] of exit rungs [B]; float64, on the CPU."""
        return torch.tensor([self.tilt(rung) for rung in rungs.tolist()], dtype=torch.float64)

    def update(self, advantage: Tensor, groups: Tensor, rung: int = 0, nats: float | None = None) -> None:
        """Adds a batch; one without differences leaves the values as they are.

        Args:
            advantage: advantages [B] of the batch of all ranks, without those of failed rewards.
            groups: prompt ids [B], the same number for samples of one prompt.
            rung: index of the exit rung, from 0.
            nats: part of the budget to be spent; None for all of it.
        """
        tilt = min(LARGEST, float(tilt_for(advantage, groups, self.nats if nats is None else nats)))
        if tilt:
            updates = self._updates[rung] = self._updates.get(rung, 0) + 1
            momentum = min(MOMENTUM, 1 - 1 / updates)
            self._tilt[rung] = momentum * self.tilt(rung) + (1 - momentum) * tilt

    def state_dict(self) -> dict[str, Any]:
        """JSON-able state."""
        return {
            "updates": {str(rung): count for rung, count in self._updates.items()},
            "tilt": {str(rung): value for rung, value in self._tilt.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` gave."""
        self._updates = {int(rung): int(count) for rung, count in state["updates"].items()}
        self._tilt = {int(rung): float(value) for rung, value in state["tilt"].items()}
