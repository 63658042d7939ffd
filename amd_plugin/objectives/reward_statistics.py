"""How far rewards of one prompt usually differ, remembered from batch to batch.

The spread of one batch is noisy where groups are small, and meaningless where all samples of a group are equally bad. A student
of several steps is scored at the rung it exits from, and early rungs score worse, so each rung has statistics of its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from amd_plugin.maths.advantage import group_std

MOMENTUM = 0.99  # of the running mean of spreads, with bias correction


class RewardStatistics:
    """Running statistics of rewards, by exit rung. All of it is part of an objective's state."""

    def __init__(self) -> None:
        self._updates: dict[int, int] = {}
        self._spread: dict[int, Tensor] = {}
        self._widest: dict[int, Tensor] = {}

    def spread(self, rung: int = 0) -> Tensor:
        """Running mean of the spread within a group, in units of the reward; 0 before any reward was seen."""
        return self._spread.get(rung, torch.zeros(()))

    def widest(self, rung: int = 0) -> Tensor:
        """The largest value of `spread` so far."""
        return self._widest.get(rung, torch.zeros(()))

    def update(self, reward: Tensor, groups: Tensor, rung: int = 0) -> None:
        """Adds the spread within the groups [B] of `reward` [B], NaN or infinite for failed ones."""
        finite = torch.isfinite(reward)
        if not finite.any():  # a batch without any reward has no spread
            return
        spread = torch.where(finite, group_std(reward, groups), 0.0).sum() / finite.sum()
        self._updates[rung] = self._updates.get(rung, 0) + 1
        self._spread[rung] = self._running(self._spread.get(rung), spread, rung)
        self._widest[rung] = torch.maximum(self.widest(rung).to(spread), self._spread[rung])

    def state_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "updates": {str(rung): count for rung, count in self._updates.items()},
            "spread": {str(rung): value.item() for rung, value in self._spread.items()},
            "widest": {str(rung): value.item() for rung, value in self._widest.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what `state_dict` gave."""
        self._updates = {int(rung): int(count) for rung, count in state["updates"].items()}
        self._spread = {int(rung): torch.tensor(float(value)) for rung, value in state["spread"].items()}
        self._widest = {int(rung): torch.tensor(float(value)) for rung, value in state.get("widest", state["spread"]).items()}

    def _running(self, old: Tensor | None, new: Tensor, rung: int) -> Tensor:
        momentum = min(MOMENTUM, 1 - 1 / self._updates[rung])
        return new if old is None else momentum * old.to(new) + (1 - momentum) * new


def group_ids(condition: Tensor | Sequence[str] | None, batch_size: int) -> Tensor:
    """[B] int64, equal where conditions are: rows of a tensor [B, ...] or prompts; one group for None.

    A condition has the same number on every process and in every batch.
    """
    if condition is None:
        return torch.zeros(batch_size, dtype=torch.long)
    if isinstance(condition, Tensor):
        rows = [row.contiguous().view(torch.uint8).numpy().tobytes() for row in condition.detach().cpu().flatten(1)]
    else:
        rows = [prompt.encode() for prompt in condition]
    return torch.tensor([int.from_bytes(hashlib.sha256(row).digest()[:7], "big") for row in rows])
