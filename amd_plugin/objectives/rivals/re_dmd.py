"""DMD with a loss per sample that grows with its reward: Re-DMD, of Reward Forcing (2512.04678)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from amd_plugin.maths import operators
from amd_plugin.maths.advantage import group_advantage
from amd_plugin.maths.operators import Maker
from amd_plugin.maths.rivals import weigh_by_reward
from amd_plugin.objectives.dmd_options import DMDOptions, NonNegative
from amd_plugin.objectives.rivals.rewarded import Rewarded
from amd_plugin.options import made, option, takes

LARGEST = 3.0  # of a standardised reward: exp(3 beta) is as far as one sample may dominate a batch


class ReDMDOptions(DMDOptions):
    """Options of `re_dmd`."""

    reward_beta: NonNegative = option(1.0, "Strength beta of the weights exp(beta r) in the matching loss; 0 is DMD.")


class ReDMDObjective(Rewarded):
    """DMD's direction times ``exp(reward_beta r)``, see `amd_plugin.maths.rivals.weigh_by_reward`.

    The authors' reward comes standardised over its training data. Here it is standardised over the batch, all prompts together,
    and limited to three spreads.

    Raises:
        OptionError: for a value out of range, or options that exclude each other.
    """

    STRENGTH = "reward_beta"

    @takes(ReDMDOptions)
    def __init__(self, guidance_scale: float = 1.0, **options: Any):
        chosen = made(ReDMDOptions, {"guidance_scale": guidance_scale, **options})
        self._set_up(chosen)
        self.strength = chosen.reward_beta

    def compare(self, reward: Tensor, groups: Tensor) -> Tensor:
        """Rewards [B] in spreads of the batch, from its mean, in [-3, 3]."""
        return group_advantage(reward, torch.zeros_like(groups), limit=LARGEST)

    def operator(self) -> Maker:
        """The operator of DMD and the weights."""
        maker: Maker = operators.chain(super().operator(), weigh_by_reward(self.schedule_factor * self.strength))
        return maker
