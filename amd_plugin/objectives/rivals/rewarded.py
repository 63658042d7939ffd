"""The base class of rivals that compare samples by their reward."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from amd_plugin.hookspecs import Needs
from amd_plugin.objectives.dmd import DMDObjective


class Rewarded(DMDObjective):
    """`DMDObjective` with one more effect of the reward; a subclass sets `strength` and says how samples compare.

    Attributes:
        STRENGTH: name of the option that sets the effect's strength.
        strength: value of that option.
        active: whether the option has an effect. Without one no reward is needed, and this is `DMDObjective` to the bit.
    """

    STRENGTH: ClassVar[str]
    strength: float

    @property
    def active(self) -> bool:
        """Whether the strength is above 0."""
        return self.strength > 0

    @property
    def needs(self) -> Needs:
        """Those of DMD, and with an effect of the reward the rewards of several samples per prompt."""
        needs = super().needs
        return replace(needs, reward=True, group_size=2, recommended_group_size=4) if self.active else needs

    @property
    def reward_levers(self) -> Mapping[str, float]:
        """Options that set the influence of the reward, with their values."""
        return {self.STRENGTH: self.strength, **super().reward_levers}

    def advantage(self, reward: Tensor, groups: Tensor, rung: int = 0) -> Tensor:
        """Advantages [B] of the batch of all ranks; 0 for failed rewards. Updates the running spread of rewards."""
        zeros = super().advantage(reward, groups, rung)
        return self.compare(reward.detach().float(), groups) if self.active else torch.zeros_like(zeros)

    def compare(self, reward: Tensor, groups: Tensor) -> Tensor:
        """Advantages [B] from rewards [B], NaN or infinite for failed ones, of the prompts `groups` [B]."""
        raise NotImplementedError
