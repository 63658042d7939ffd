"""DMD whose first step is anchored to the teacher, which keeps diversity: DP-DMD (2602.03139)."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

from pydantic import Field

from amd_plugin.errors import OptionError
from amd_plugin.hookspecs import Needs
from amd_plugin.maths.losses import LossOutput, fake_score_loss_per_sample
from amd_plugin.maths.signals import Signals
from amd_plugin.objectives.dmd import DMDObjective
from amd_plugin.objectives.dmd_options import DMDOptions, NonNegative
from amd_plugin.options import made, option, takes

Steps = Annotated[int, Field(ge=1)]


class DPDMDOptions(DMDOptions):
    """Options of `dp_dmd`."""

    diversity_weight: NonNegative = option(
        1.0, "Weight of the first step's distance to where the teacher's path points; 0 is DMD.", needs="teacher_path"
    )
    match_first: bool = option(
        False, "Whether the first step is matched too; a student of one step has to be, as it is its last one as well."
    )
    anchor_steps: Steps = option(5, "Number of steps of the teacher's path that are taken.", group="expert")
    teacher_steps: Steps = option(30, "Number of steps of the teacher's whole path.", group="expert")


class DPDMDObjective(DMDObjective):
    """At the first rung ``diversity_weight |x0 - target|^2``, at the others DMD; no reward.

    The target is where the teacher's path from the student's own noise points after some of its steps, with guidance, see
    `amd_plugin.maths.rivals.path_target`. So samples that start from different noise stay different. As in the paper, no
    matching loss reaches the first step, unless `match_first`. Carried over: there one update trains all steps; here each
    update trains one rung, and those of the first are the anchor's.

    Raises:
        OptionError: for a value out of range, or options that exclude each other.
    """

    @takes(DPDMDOptions)
    def __init__(self, guidance_scale: float = 1.0, **options: Any):
        chosen = made(DPDMDOptions, {"guidance_scale": guidance_scale, **options})
        self._set_up(chosen)
        self.weight, self.match_first = chosen.diversity_weight, chosen.match_first
        self.path = (chosen.anchor_steps, chosen.teacher_steps)
        if chosen.anchor_steps > chosen.teacher_steps:
            raise OptionError(
                "anchor_steps", f"must be at most teacher_steps, {chosen.teacher_steps}, got {chosen.anchor_steps}"
            )

    @property
    def needs(self) -> Needs:
        """Everything the objective needs from a host."""
        needs = super().needs
        return replace(needs, teacher_path=self.path, student_steps=1 if self.match_first else 2) if self.weight else needs

    def student_loss(self, signals: Signals) -> LossOutput:
        """The loss of DMD, and where there is an anchor its distance, alone or besides."""
        output = super().student_loss(signals)
        if not self.weight or signals.anchor is None:
            return output
        distance = self.weight * fake_score_loss_per_sample(signals.x0, signals.anchor)
        metrics = output.metrics | {"anchor_loss": distance.detach().mean()}
        if self.match_first:
            return LossOutput(output.loss + distance.mean(), output.per_sample + distance.detach(), metrics)
        return LossOutput(distance.mean(), distance.detach(), metrics)
