"""DMD's direction, normalised within the samples of a prompt: ours, after the abstract of GNDM (2603.28460)."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

from pydantic import Field

from amd_plugin.hookspecs import Needs
from amd_plugin.maths.operators import Transform
from amd_plugin.maths.rivals import normalize_within_groups
from amd_plugin.maths.signals import Direction
from amd_plugin.objectives.dmd import DMDObjective
from amd_plugin.objectives.dmd_options import DMDOptions
from amd_plugin.options import made, option, takes

Share = Annotated[float, Field(ge=0, le=1)]


class GNDMOptions(DMDOptions):
    """Options of `gndm`."""

    group_share: Share = option(
        1.0, "Share of the direction that is normalised within groups, the rest as in DMD; 0 is DMD.", needs="groups"
    )
    group_centring: Share = option(
        0.0, "Share of the mean direction of a group that is subtracted; 1: GRPO's form, in which no group moves as one.",
        group="expert",
    )  # fmt: skip


class GNDMObjective(DMDObjective):
    """DMD with `amd_plugin.maths.rivals.normalize_within_groups` in place of its normaliser.

    The authors' abstract names group-mean statistics. Here a group's mean is subtracted with ``group_centring: 1`` alone.
    A reward takes part as in the authors' GNDMR, through `reward_gradient`. Groups are those of a micro-batch: a run depends on
    how its batch is split, as with ``normalizer: global``. The direction has the same size in every group, also where the
    student has learned all there is, so that what is left of it there is noise.

    Raises:
        OptionError: for a value out of range, or options that exclude each other.
    """

    @takes(GNDMOptions)
    def __init__(self, guidance_scale: float = 1.0, **options: Any):
        chosen = made(GNDMOptions, {"guidance_scale": guidance_scale, **options})
        self._set_up(chosen)
        self.share = chosen.group_share
        if self.share:
            self._normalize = _mixed(self._normalize, normalize_within_groups(chosen.group_centring), self.share)

    @property
    def needs(self) -> Needs:
        """Everything the objective needs from a host."""
        needs = super().needs
        return replace(needs, groups=True, group_size=2, recommended_group_size=4) if self.share else needs


def _mixed(one: Transform, other: Transform, share: float) -> Transform:
    """``(1 - share) one + share other``."""

    def transform(direction: Direction) -> Direction:
        a, b = one(direction), other(direction)
        return direction._replace(
            match=(1 - share) * a.match + share * b.match, guide=(1 - share) * a.guide + share * b.guide
        )  # fmt: skip

    return transform
