"""Rewards, remembered from batch to batch: how far samples of one prompt usually differ, and how well prompts usually do.

With one batch at a time, a group's own mean and spread are noisy in small groups, and its spread says nothing where all samples
of a group are equally bad. The running ones answer both. A student of several steps is scored at the rung it exits from, and
early rungs score worse: each rung has statistics of its own.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from amd_plugin.maths.advantage import EPS, Squash, group_std, settled

log = logging.getLogger(__name__)


class RewardStatistics:
    """Running statistics of rewards, by exit rung. All of it is part of an objective's state.

    Attributes:
        MOMENTUM: of the spreads, with bias correction.
        PROMPT_MOMENTUM: of the mean of every prompt, likewise.
        PROMPTS: as many are remembered, at all rungs together; the one that was not asked for longest is forgotten first.
        forgets: whether there were more prompts than are remembered.
        known_prompts: share of the last batch's samples whose prompt was remembered from an earlier one.
    """

    MOMENTUM = 0.99
    PROMPT_MOMENTUM = 0.9
    PROMPTS = 16384

    def __init__(self) -> None:
        self._updates: dict[int, int] = {}
        self._spread: dict[int, Tensor] = {}
        self._widest: dict[int, Tensor] = {}
        self._variance: dict[int, Tensor] = {}
        self._prompts: dict[tuple[int, int], tuple[int, float]] = {}
        self.known_prompts = 0.0
        self.forgets = False

    def spread(self, rung: int = 0) -> Tensor:
        """Running mean of the spread within a group, in units of the reward; 0 before any reward was seen."""
        return self._spread.get(rung, torch.zeros(()))

    def widest(self, rung: int = 0) -> Tensor:
        """The largest that `spread` has been."""
        return self._widest.get(rung, torch.zeros(()))

    def update(self, reward: Tensor, groups: Tensor, rung: int = 0) -> None:
        """Takes in the spread within the groups [B] of `reward` [B], NaN or infinite for failed ones."""
        finite = torch.isfinite(reward)
        if not finite.any():  # a batch without any reward says nothing about their spread
            return
        spread = torch.where(finite, group_std(reward, groups), 0.0).sum() / finite.sum()
        self._updates[rung] = self._updates.get(rung, 0) + 1
        self._spread[rung] = self._running(self._spread.get(rung), spread, rung)
        self._widest[rung] = torch.maximum(self.widest(rung).to(spread), self._spread[rung])

    def prompt_advantage(
        self,
        reward: Tensor,
        groups: Tensor,
        rung: int,
        squash: Squash,
        limit: float,
        std_floor: float,
        unit: float = 0.0,
        tolerance: float = 0.0,
    ) -> Tensor:
        """``a_i = squash(shrink((r_i - m_c) / (s + 1e-4)))``: m_c the running mean of prompt c, s one running spread for all
        prompts, or `unit` where that is above 0.

        Takes in the batch first, so that the first one of a prompt is compared with its own mean. Unlike with groups, samples
        of a prompt that does badly today are worse than usual, all of them; and one sample per prompt is enough.

        Args:
            reward, groups: [B], as for `group_advantage`; `groups` must mean the same prompts in every batch. One that is new,
                or forgotten, is compared with its own mean in this batch, as groups are.
            squash, limit, tolerance: likewise.
            std_floor: smallest spread to divide by, in units of the reward.

        Returns:
            [B], fp32 or wider; 0 for failed rewards.
        """
        valid, centred = torch.isfinite(reward), torch.zeros_like(reward)
        members, index = torch.unique(groups[valid], return_inverse=True)
        total = torch.zeros(len(members), dtype=reward.dtype, device=reward.device).index_add(0, index, reward[valid])
        means, known = [], []
        for prompt, now in zip(members.tolist(), (total / torch.bincount(index).clamp(min=1)).tolist(), strict=True):
            seen, mean = self._prompts.pop((rung, prompt), (0, 0.0))
            known.append(float(seen > 0))
            mean += max(1 / (seen + 1), 1 - self.PROMPT_MOMENTUM) * (now - mean)
            self._prompts[rung, prompt] = seen + 1, mean
            means.append(mean)
        self.known_prompts = float((torch.tensor(known).to(reward)[index]).mean()) if known else 0.0
        for forgotten in list(self._prompts)[: -self.PROMPTS]:
            del self._prompts[forgotten]
            self.forgets = True
        centred[valid] = reward[valid] - torch.tensor(means).to(reward)[index]
        if valid.any():
            self._variance[rung] = self._running(self._variance.get(rung), centred[valid].square().mean(), rung)
        spread = self._variance.get(rung, torch.zeros(())).to(centred).sqrt().clamp(min=std_floor) + EPS
        return torch.where(valid, settled(centred / (unit or spread), squash, limit, tolerance), 0.0)

    def state_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "updates": {str(rung): count for rung, count in self._updates.items()},
            "spread": {str(rung): value.item() for rung, value in self._spread.items()},
            "widest": {str(rung): value.item() for rung, value in self._widest.items()},
            "variance": {str(rung): value.item() for rung, value in self._variance.items()},
            "prompt_means": [[*key, *value] for key, value in self._prompts.items()],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what `state_dict` gave."""
        self._updates = {int(rung): int(count) for rung, count in state["updates"].items()}
        self._spread = {int(rung): torch.tensor(float(value)) for rung, value in state["spread"].items()}
        self._widest = {int(rung): torch.tensor(float(value)) for rung, value in state.get("widest", state["spread"]).items()}
        self._variance = {int(rung): torch.tensor(float(value)) for rung, value in state["variance"].items()}
        if state.get("prompts"):
            log.warning("means of prompts were kept by an earlier version, which told prompts apart otherwise, and start anew")
        self._prompts = {(rung, prompt): (seen, mean) for rung, prompt, seen, mean in state.get("prompt_means", ())}

    def _running(self, old: Tensor | None, new: Tensor, rung: int) -> Tensor:
        momentum = min(self.MOMENTUM, 1 - 1 / self._updates[rung])
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
