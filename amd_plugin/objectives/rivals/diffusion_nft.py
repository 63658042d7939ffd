"""DMD and DiffusionNFT (2509.16117), carried over to a few-step student: implicit policies on the forward process."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

from pydantic import Field
from torch import Tensor

from amd_plugin.hookspecs import Needs
from amd_plugin.maths.advantage import group_advantage
from amd_plugin.maths.losses import LossOutput
from amd_plugin.maths.rivals import implicit_policy_loss
from amd_plugin.maths.signals import Signals
from amd_plugin.objectives.dmd_options import DMDOptions, NonNegative
from amd_plugin.objectives.rivals.rewarded import Rewarded
from amd_plugin.options import made, option, takes


class DiffusionNFTOptions(DMDOptions):
    """Options of `diffusion_nft`."""

    nft_weight: NonNegative = option(0.1, "Weight of the loss of the implicit policies; 0 is DMD.", needs="student_prediction")
    nft_beta: Annotated[float, Field(gt=0)] = option(
        1.0, "Strength beta of the implicit policies; a smaller one goes further for the same reward.", group="expert"
    )


class DiffusionNFTObjective(Rewarded):
    """``DMD + nft_weight loss``, see `amd_plugin.maths.rivals.implicit_policy_loss`.

    The student's samples are re-noised to the rung at which it is trained, and it predicts them from there once more.
    Advantages are rewards minus their group's mean, over the spread of the whole batch, clipped to [-1, 1] as in the paper. The
    paper's penalty towards the reference model is DMD's loss here.

    Raises:
        OptionError: for a value out of range, or options that exclude each other.
    """

    STRENGTH = "nft_weight"

    @takes(DiffusionNFTOptions)
    def __init__(self, guidance_scale: float = 1.0, **options: Any):
        chosen = made(DiffusionNFTOptions, {"guidance_scale": guidance_scale, **options})
        self._set_up(chosen)
        self.strength, self.beta = chosen.nft_weight, chosen.nft_beta

    @property
    def needs(self) -> Needs:
        """Everything the objective needs from a host."""
        return replace(super().needs, student_prediction=self.active)

    def compare(self, reward: Tensor, groups: Tensor) -> Tensor:
        """Advantages [B] in [-1, 1], in spreads of the batch."""
        return group_advantage(reward, groups, scale="batch")

    def student_loss(self, signals: Signals) -> LossOutput:
        """The loss of DMD and of the implicit policies.

        Raises:
            ValueError: also without the student's prediction or advantages.
        """
        output = super().student_loss(signals)
        if not self.active:
            return output
        if signals.student is None or signals.advantage is None:
            raise ValueError("Signals.student and advantage: needed by diffusion_nft, got None")
        old = signals.student.detach()
        policies = implicit_policy_loss(signals.student, old, signals.x0, signals.advantage, self.beta)
        loss = self.schedule_factor * self.strength * policies
        metrics = output.metrics | {"nft_loss": loss.detach().mean()}
        return LossOutput(output.loss + loss.mean(), output.per_sample + loss.detach(), metrics)
