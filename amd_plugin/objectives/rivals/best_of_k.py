"""DMD with a fake score whose data are selected by rank, so that the student becomes the best of k samples of the teacher."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from amd_plugin.hookspecs import Needs
from amd_plugin.maths.rivals import best_of_k_weights, rank_advantage
from amd_plugin.objectives.dmd_options import DMDOptions
from amd_plugin.objectives.rivals.rewarded import Rewarded
from amd_plugin.options import made, option, takes


class BestOfKOptions(DMDOptions):
    """Options of `best_of_k`."""

    best_of: Annotated[float, Field(ge=1)] = option(
        4.0, "Number of the teacher's samples of which the student becomes the best; 1 is DMD.", needs="fake_score_weight"
    )


class BestOfKObjective(Rewarded):
    """DMD whose fake score is trained with the weights `amd_plugin.maths.rivals.best_of_k_weights`.

    With k for `best_of`, the divergence from the teacher is ``log k - (k-1)/k`` nats whatever the reward, and any increasing
    function of a reward gives the same student. Quantiles within groups of n samples have steps of 1 / n: `best_of` should not
    exceed the group's size by much.

    Raises:
        OptionError: for a value out of range, or options that exclude each other.
    """

    STRENGTH = "best_of"

    @takes(BestOfKOptions)
    def __init__(self, guidance_scale: float = 1.0, **options: Any):
        chosen = made(BestOfKOptions, {"guidance_scale": guidance_scale, **options})
        self._set_up(chosen)
        self.strength = chosen.best_of

    @property
    def active(self) -> bool:
        """Whether `best_of` is above 1."""
        return self.strength > 1

    @property
    def needs(self) -> Needs:
        """Everything the objective needs from a host."""
        return replace(super().needs, fake_score_weight=self.active)

    def compare(self, reward: Tensor, groups: Tensor) -> Tensor:
        """Advantages [B] in (-1, 1), quantiles within the group."""
        return rank_advantage(reward, groups)

    def sharpening_weights(self, advantage: Tensor, sigma: Tensor | None = None) -> Tensor:
        """Weights [B] of mean 1 for the fake score's loss, the same at all noise levels."""
        k = 1 + self.schedule_factor * (self.strength - 1)
        return best_of_k_weights(advantage, k) if self.active else torch.ones_like(advantage)
