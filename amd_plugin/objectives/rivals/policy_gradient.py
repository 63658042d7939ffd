"""DMD and a policy gradient on the student's own transitions: GRPO, as RTDMD (2605.26108) adds it to distribution matching."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from amd_plugin.hookspecs import Needs
from amd_plugin.maths.advantage import group_advantage
from amd_plugin.maths.losses import LossOutput
from amd_plugin.maths.rivals import policy_loss
from amd_plugin.maths.signals import Signals
from amd_plugin.objectives.dmd_options import DMDOptions, NonNegative
from amd_plugin.objectives.rivals.rewarded import Rewarded
from amd_plugin.options import made, option, takes

LARGEST = 5.0  # the limit of advantages in Flow-GRPO (2505.05470)


class PolicyGradientOptions(DMDOptions):
    """Options of `policy_gradient`."""

    policy_weight: NonNegative = option(
        0.1, "Weight of the policy gradient on the student's own transitions; 0 is DMD.", needs="transition_density"
    )


class PolicyGradientObjective(Rewarded):
    """``DMD + policy_weight (-a log p(transition))``, see `amd_plugin.maths.rivals.policy_loss`.

    Advantages are GRPO's: rewards minus their group's mean, over its spread. Transitions lead to all rungs but the first, so a
    student has two steps at least, and an update at the first rung is DMD's. The last step is deterministic and gets no policy
    gradient; RTDMD follows a differentiable reward there, which is `reward_gradient`. One transition is drawn per update, in
    place of RTDMD's subset of steps.

    Raises:
        OptionError: for a value out of range, or options that exclude each other.
    """

    STRENGTH = "policy_weight"

    @takes(PolicyGradientOptions)
    def __init__(self, guidance_scale: float = 1.0, **options: Any):
        chosen = made(PolicyGradientOptions, {"guidance_scale": guidance_scale, **options})
        self._set_up(chosen)
        self.strength = chosen.policy_weight

    @property
    def needs(self) -> Needs:
        """Everything the objective needs from a host."""
        needs = super().needs
        return replace(needs, transition_density=True, student_steps=2) if self.active else needs

    def compare(self, reward: Tensor, groups: Tensor) -> Tensor:
        """Advantages [B] in [-5, 5], in spreads of their group."""
        return group_advantage(reward, groups, limit=LARGEST)

    def student_loss(self, signals: Signals) -> LossOutput:
        """The loss of DMD and of the policy.

        Raises:
            ValueError: also without a log-density or advantages.
        """
        output = super().student_loss(signals)
        if not self.active:
            return output
        if signals.log_density is None or signals.advantage is None:
            raise ValueError("Signals.log_density and advantage: needed by policy_gradient, got None")
        loss = self.schedule_factor * self.strength * policy_loss(signals.log_density, signals.advantage)
        metrics = output.metrics | {"policy_loss": loss.detach().mean()}
        return LossOutput(output.loss + loss.mean(), output.per_sample + loss.detach(), metrics)
