"""Running statistics of the spread of rewards within prompts.

The spread of one batch is noisy for small groups, and meaningless if all samples of a group are equally bad. A student of
several steps is scored at its exit rung, and early rungs score worse, so each rung has its own statistics.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from amd_plugin.maths.advantage import group_std, scored

_GOLDEN, _MIXING = -7046029254386353131, ((-4658895280553007687, 30), (-7723592293110705685, 27))
MOMENTUM = 0.99  # of the running mean of spreads, with bias correction
SETTLED, OUTLIER = 10, 10.0  # batches after which a spread counts as at most so many times the running one


class RewardStatistics:
    """Running statistics of rewards by exit rung, a part of an objective's state."""

    def __init__(self) -> None:
        self._updates: dict[int, int] = {}
        self._spread: dict[int, Tensor] = {}
        self._widest: dict[int, Tensor] = {}

    def spread(self, rung: int = 0) -> Tensor:
        """Running mean of the spread within groups, in units of the reward; 0 before the first reward."""
        return self._spread.get(rung, torch.zeros(()))

    def widest(self, rung: int = 0) -> Tensor:
        """The largest value of `spread` so far."""
        return self._widest.get(rung, torch.zeros(()))

    def update(self, reward: Tensor, groups: Tensor, rung: int = 0) -> None:
        """Adds the spread of a batch.

        Args:
            reward: rewards [B]; NaN or infinite for failed ones.
            groups: prompt ids [B], the same number for samples of one prompt.
            rung: index of the exit rung, from 0.
        """
        finite = scored(reward)
        if not finite.any():  # a batch without any reward has no spread
            return
        spread = torch.where(finite, group_std(reward, groups), 0.0).sum() / finite.sum()
        if self._updates.get(rung, 0) >= SETTLED:  # one reward of -10000 would mute all others for hundreds of batches
            known = self.spread(rung).to(spread)
            spread = torch.where(known > 0, spread.clamp(max=OUTLIER * known), spread)
        self._updates[rung] = self._updates.get(rung, 0) + 1
        self._spread[rung] = self._running(self._spread.get(rung), spread, rung)
        self._widest[rung] = torch.maximum(self.widest(rung).to(spread), self._spread[rung])

    def state_dict(self) -> dict[str, Any]:
        """JSON-able state."""
        return {
            "updates": {str(rung): count for rung, count in self._updates.items()},
            "spread": {str(rung): value.item() for rung, value in self._spread.items()},
            "widest": {str(rung): value.item() for rung, value in self._widest.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` gave."""
        self._updates = {int(rung): int(count) for rung, count in state["updates"].items()}
        self._spread = {int(rung): torch.tensor(float(value)) for rung, value in state["spread"].items()}
        self._widest = {int(rung): torch.tensor(float(value)) for rung, value in state.get("widest", state["spread"]).items()}

    def _running(self, old: Tensor | None, new: Tensor, rung: int) -> Tensor:
        momentum = min(MOMENTUM, 1 - 1 / self._updates[rung])
        return new if old is None else momentum * old.to(new) + (1 - momentum) * new


def group_ids(condition: Tensor | Sequence[str] | None, batch_size: int) -> Tensor:
    """Group ids [B], int64 in [0, 2^53), equal for equal conditions, on every process and in every batch.

    Args:
        condition: tensor [B, ...] with a condition per row, or prompts; None for one group.
        batch_size: number of samples B.
    """
    if condition is None:
        return torch.zeros(batch_size, dtype=torch.long)
    if isinstance(condition, Tensor):
        return _hashes(condition.detach().flatten(1).contiguous())
    rows = [prompt.encode() for prompt in condition]
    return torch.tensor([int.from_bytes(hashlib.sha256(row).digest()[:7], "big") >> 3 for row in rows])


def _hashes(rows: Tensor) -> Tensor:
    """Multilinear hashes [B] of the bits of `rows` [B, n], on their own device: to hash them elsewhere would wait for it."""
    size = rows.shape[1] * rows.element_size()
    words = rows.view(torch.int32 if size % 4 == 0 else torch.uint8).long()
    factors = torch.arange(1, words.shape[1] + 1, device=rows.device) * _GOLDEN
    for factor, shift in _MIXING:  # as in SplitMix64
        factors = (factors ^ (factors >> shift)) * factor
    return ((words + 1) * (factors ^ (factors >> 31))).sum(1) >> 11 & (1 << 53) - 1
