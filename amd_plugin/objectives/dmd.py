"""What a host calls: signals and rewards in, losses and metrics out. DMD here, and the frame that AMD extends.

An objective owns no optimizer, device, `requires_grad` toggle or process group. A host makes one, gives what it `needs`, asks
for losses, steps its own optimizers, and stores `state_dict()`:

    advantage = objective.advantage(reward, groups)                   # the joined batch of all ranks
    loss = objective.student_loss(Signals(x0, cond, uncond, fake, sigma, advantage)).loss
    ...
    weight = objective.sharpening_weights(advantage)                  # likewise
    loss = objective.fake_score_loss(prediction, target, weight).loss
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from amd_plugin.errors import InputError
from amd_plugin.hookspecs import Needs
from amd_plugin.maths import operators
from amd_plugin.maths.adversarial import Adversarial
from amd_plugin.maths.diagnostics import term_metrics
from amd_plugin.maths.losses import fake_score_loss_per_sample, matching_loss_per_sample
from amd_plugin.maths.operators import Maker, Transform, normalize
from amd_plugin.maths.prediction import widen
from amd_plugin.maths.signals import Direction, Signals
from amd_plugin.objectives.dmd_options import DecoupledDMDOptions, DMD2Options, DMDOptions, PlainDMDOptions, check_dmd
from amd_plugin.objectives.reward_statistics import RewardStatistics
from amd_plugin.options import made, takes


class LossOutput(NamedTuple):
    """What a turn costs.

    Attributes:
        loss: scalar, with grad; the mean of `per_sample`.
        per_sample: [B], detached.
        metrics: name -> 0-dim tensor, detached; reading one costs a device synchronisation, so do it on logging steps.
    """

    loss: Tensor
    per_sample: Tensor
    metrics: dict[str, Tensor]


class DMDObjective:
    """DMD2's matching loss: the baseline, and the frame that AMD extends.

    Args:
        guidance_scale: guidance scale w of the teacher in the standard form ``uncond + w (cond - uncond)``; 1 needs no uncond.
        options: the further options of `DMDOptions`, by name.

    Attributes:
        guidance_scale: as given; a host whose guidance scale changes sets it before each turn.
        schedule_factor: factor in [0, 1] on all that follows the reward, set by the host (`distill_strength_schedule`).
        reward_unit: reward difference that counts as significant, set by the host; 0 if unknown.
        reward_gradient: weight of a differentiable reward's own gradient.
        adversarial: loss weights of the adversarial branch, None without one.
        statistics: running statistics of rewards.

    Raises:
        OptionError: for a value out of range, or options that do not go together.
    """

    @takes(DMDOptions)
    def __init__(self, guidance_scale: float = 1.0, **options: Any):
        self._set_up(made(DMDOptions, {"guidance_scale": guidance_scale, **options}))

    def _set_up(self, options: DMDOptions) -> None:
        check_dmd(options)
        self.guidance_scale, self.guidance_window = options.guidance_scale, options.guidance_window
        self.guidance_sigma, self.match_sigma = options.guidance_sigma, options.match_sigma
        self.reward_gradient = options.reward_gradient
        gan = Adversarial(options.gan_weight, options.gan_r1, options.gan_r1_sigma)
        self.adversarial = gan if gan.weight else None
        self.schedule_factor, self.reward_unit = 1.0, 0.0
        self.statistics = RewardStatistics()
        self._spread: Tensor = torch.zeros(())
        self._widest: Tensor = torch.zeros(())
        self._normalize = normalize(options.normalizer)

    @property
    def needs(self) -> Needs:
        """What it asks of a host."""
        following = self.reward_gradient > 0
        least = 2 if following else 1  # the spread of one sample is none
        return Needs(
            reward=following, group_size=least, recommended_group_size=least, reward_gradient=following,
            uncond=self.guidance_scale != 1, noise_level=self.guidance_window is not None,
            guidance_range=self.guidance_sigma, match_range=self.match_sigma, discriminator=self.adversarial,
        )  # fmt: skip

    @property
    def reward_levers(self) -> Mapping[str, float]:
        """Options that set how hard the reward is followed, with their values."""
        return {"reward_gradient": self.reward_gradient}

    @property
    def shared_sums(self) -> Sequence[Tensor]:
        """Running sums over this process's samples, for the host to average over processes; none here."""
        return ()

    @property
    def strength_scale(self) -> float:
        """`schedule_factor` under its name before version 0.1.0."""
        return self.schedule_factor

    @strength_scale.setter
    def strength_scale(self, factor: float) -> None:
        self.schedule_factor = factor

    def advantage(self, reward: Tensor, groups: Tensor, rung: int = 0) -> Tensor:
        """[B] zeros: plain DMD compares no samples. Updates the running spread of rewards."""
        self._observe(reward.detach().float(), groups, rung)
        return torch.zeros_like(reward)

    def sharpening_weights(self, advantage: Tensor, sigma: Tensor | None = None) -> Tensor:
        """[B] ones: plain DMD trains its fake score on all samples alike."""
        return torch.ones_like(advantage)

    def student_loss(self, signals: Signals) -> LossOutput:
        """The surrogate loss on `signals.x0`, in fp32 or wider.

        Raises:
            ValueError: where shapes do not match, or the unconditional prediction is missing at a guidance scale other than 1.
        """
        signals.check()
        if self.guidance_scale != 1 and signals.real_uncond is None and signals.guide_uncond is None:
            raise ValueError(f"Signals.real_uncond: needed at guidance scale {self.guidance_scale}, got None")
        direction = operators.chain(self.operator(), self._normalize)(signals)
        per_sample = matching_loss_per_sample(signals.x0, direction.total())
        metrics = {**term_metrics(direction), **self.direction_metrics(direction)}
        if self.reward_gradient:
            following, metrics["failed_gradients"] = self._reward_loss(signals)
            per_sample = per_sample + following
        return LossOutput(per_sample.mean(), per_sample.detach(), metrics)

    def fake_score_loss(self, prediction: Tensor, target: Tensor, weight: Tensor | None = None) -> LossOutput:
        """The fake score's denoising loss; `prediction` and `target` [B, ...] alike, `weight` [B] of mean 1 over all ranks.

        Raises:
            ValueError: where shapes do not match.
        """
        if prediction.shape != target.shape:
            raise ValueError(f"target: must have prediction's shape {tuple(prediction.shape)}, got {tuple(target.shape)}")
        if weight is not None and weight.shape != prediction.shape[:1]:
            raise ValueError(f"weight: must have shape {tuple(prediction.shape[:1])}, got {tuple(weight.shape)}")
        per_sample = fake_score_loss_per_sample(prediction, target, weight)
        return LossOutput(per_sample.mean(), per_sample.detach(), {})

    def operator(self) -> Maker:
        """The operator H whose direction the student follows, before normalisation."""
        return operators.chain(operators.dmd(self.guidance_scale), *self._masks())

    def direction_metrics(self, direction: Direction) -> dict[str, Tensor]:
        """What to log about this objective's own part in the direction."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """JSON-able: running statistics of rewards; empty where none are used."""
        return {"rewards": self.statistics.state_dict()} if self.needs.reward else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what `state_dict` gave.

        Raises:
            InputError: for the state of another objective.
        """
        expect_keys(state, self.state_dict(), type(self).__name__)
        if self.needs.reward:
            self.statistics.load_state_dict(state["rewards"])

    def _observe(self, reward: Tensor, groups: Tensor, rung: int) -> None:
        """Updates the spread of rewards [B]; the student's turn that follows uses that of its rung."""
        self.statistics.update(reward, groups, rung)
        self._spread, self._widest = self.statistics.spread(rung), self.statistics.widest(rung)

    def _masks(self) -> list[Transform]:
        return [] if self.guidance_window is None else [operators.window(guide=self.guidance_window)]

    def _reward_loss(self, signals: Signals) -> tuple[Tensor, Tensor]:
        """``- reward_gradient r / spread`` of each sample [B], 0 where the reward failed, and the share of those."""
        if signals.reward is None:
            raise ValueError("Signals.reward: a differentiable reward is needed while reward_gradient is above 0, got None")
        answered = torch.isfinite(signals.reward)
        reward = torch.where(answered, signals.reward, 0.0)
        spread = self._widest.to(reward)
        following = -self.schedule_factor * self.reward_gradient * widen(reward) / torch.where(spread > 0, spread, 1.0)
        return following, 1 - answered.float().mean()


@takes(PlainDMDOptions)
def dmd(guidance_scale: float = 1.0, **options: Any) -> DMDObjective:
    """DMD2's matching loss (2405.14867), guidance and matching at the same noise level."""
    return DMDObjective(**dict(made(PlainDMDOptions, {"guidance_scale": guidance_scale, **options})))


@takes(DMD2Options)
def dmd2(guidance_scale: float = 1.0, **options: Any) -> DMDObjective:
    """DMD2 (2405.14867): distribution matching and an adversarial loss, at the weight its authors use for SDXL."""
    return DMDObjective(**dict(made(DMD2Options, {"guidance_scale": guidance_scale, **options})))


@takes(DecoupledDMDOptions)
def decoupled_dmd(guidance_scale: float = 1.5, **options: Any) -> DMDObjective:
    """Decoupled DMD: guidance and matching draw their noise levels independently, each from a range of its own."""
    return DMDObjective(**dict(made(DecoupledDMDOptions, {"guidance_scale": guidance_scale, **options})))


def expect_keys(state: dict[str, Any], own: dict[str, Any], name: str) -> None:
    """Raises InputError where `state` has not the keys of `own`, a state of the objective `name`."""
    if set(state) != set(own):
        raise InputError(
            f"state of {name}: must have the keys {sorted(own)}, got {sorted(state)}. It belongs to another objective"
        )
