"""DMD as an objective, and the base class of AMD: signals and rewards in, losses and metrics out.

An objective owns no optimizer, device, `requires_grad` toggle or process group. A host builds one, supplies what it `needs`,
computes losses, steps its own optimizers, and stores `state_dict()`:

    advantage = objective.advantage(reward, groups)                   # of the batch of all ranks
    loss = objective.student_loss(Signals(x0, cond, uncond, fake, sigma, advantage)).loss
    ...
    weight = objective.sharpening_weights(advantage)                  # of the batch of all ranks
    loss = objective.fake_score_loss(prediction, target, weight).loss
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from amd_plugin.contract import Renamed
from amd_plugin.errors import InputError
from amd_plugin.hookspecs import Needs
from amd_plugin.maths import operators
from amd_plugin.maths.advantage_guidance import NONE
from amd_plugin.maths.adversarial import Adversarial
from amd_plugin.maths.diagnostics import gradient_ratio, term_metrics
from amd_plugin.maths.losses import LossOutput, fake_score_loss_per_sample, matching_loss_per_sample
from amd_plugin.maths.operators import Maker, Transform, normalize
from amd_plugin.maths.prediction import widen
from amd_plugin.maths.signals import Direction, Signals
from amd_plugin.objectives.dmd_options import DecoupledDMDOptions, DMD2Options, DMDOptions, PlainDMDOptions, check_dmd
from amd_plugin.objectives.reward_statistics import RewardStatistics
from amd_plugin.options import made, takes


class DMDObjective:
    """DMD2's matching loss: the baseline, and the base class of AMD.

    Args:
        guidance_scale: guidance scale w of the teacher in the standard form ``uncond + w (cond - uncond)``; 1 needs no uncond.
        options: further options of `DMDOptions`, by name.

    Attributes:
        guidance_scale: guidance scale as given; a host with a varying guidance scale sets it before each turn.
        schedule_factor: factor in [0, 1] on the weights and terms that follow the reward, set by the host
            (`distill_strength_schedule`).
        reward_unit: reward difference that counts as significant, set by the host; 0 if unknown.
        guidance_window: noise levels (low, high) outside which the guidance term is left out; None for no window.
        guidance_sigma: noise levels (low, high) of guidance in a draw of its own; None for no such draw.
        match_sigma: noise levels (low, high) of the matching term; None for the host's.
        reward_gradient: weight of a differentiable reward's gradient.
        adversarial: loss weights of the adversarial branch; None without one.
        statistics: running statistics of rewards.

    Raises:
        OptionError: for a value out of range, or options that exclude each other.
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
        """Everything the objective needs from a host."""
        uses_gradient = self.reward_gradient > 0
        group_size = 2 if uses_gradient else 1  # the gradient is divided by the spread within prompts
        return Needs(
            reward=uses_gradient, group_size=group_size, recommended_group_size=group_size, reward_gradient=uses_gradient,
            uncond=self.guidance_scale != 1, noise_level=self.guidance_window is not None,
            guidance_range=self.guidance_sigma, match_range=self.match_sigma, discriminator=self.adversarial,
        )  # fmt: skip

    @property
    def reward_levers(self) -> Mapping[str, float]:
        """Options that set the influence of the reward, with their values."""
        return {"reward_gradient": self.reward_gradient}

    @property
    def shared_sums(self) -> Sequence[Tensor]:
        """Running sums over this process's samples, which a host averages over processes; none for DMD."""
        return ()

    needs_reward, needs_uncond, min_group_size = Renamed(), Renamed(), Renamed()
    recommended_group_size, memory_share, reward_options = Renamed(), Renamed(), Renamed()

    @property
    def strength_scale(self) -> float:
        """The name of `schedule_factor` before version 0.1.0."""
        return self.schedule_factor

    @strength_scale.setter
    def strength_scale(self, factor: float) -> None:
        self.schedule_factor = factor

    def advantage(self, reward: Tensor, groups: Tensor, rung: int = 0) -> Tensor:
        """Zeros [B], as plain DMD compares no samples. Updates the running spread of rewards."""
        self._observe(reward.detach().float(), groups, rung)
        return torch.zeros_like(reward)

    def sharpening_weights(self, advantage: Tensor, sigma: Tensor | None = None) -> Tensor:
        """Ones [B], as plain DMD weighs all samples alike."""
        return torch.ones_like(advantage)

    def outcomes(self, advantage: Tensor, draws: Tensor) -> Tensor:
        """No outcome for any sample [B], as plain DMD conditions the fake score on none."""
        return torch.full_like(advantage, NONE, dtype=torch.long)

    def student_loss(self, signals: Signals) -> LossOutput:
        """The surrogate loss on `signals.x0`, in fp32 or wider.

        Raises:
            ValueError: for shapes that do not match, or without the predictions that guidance needs at a scale other than 1.
        """
        signals.check()
        if self.guidance_scale != 1 and signals.real_uncond is None and signals.guide_uncond is None:
            raise ValueError(f"Signals.real_uncond: needed at guidance scale {self.guidance_scale}, got None")
        if self.guidance_scale != 1 and self.guidance_sigma is not None and signals.guide_cond is None:
            raise ValueError(f"Signals.guide_cond: needed with guidance_sigma {self.guidance_sigma}, got None")
        direction = operators.chain(self.operator(), self._normalize)(signals)
        per_sample = matching_loss_per_sample(signals.x0, direction.total())
        metrics = {**term_metrics(direction), **self.direction_metrics(direction)}
        follows = self.needs.reward_gradient
        if follows is True or (follows and signals.reward is not None):
            reward_loss, metrics["failed_gradients"] = self._reward_loss(signals, direction)
            metrics["reward_gradient_ratio"] = gradient_ratio(reward_loss, signals.x0, direction.total())
            per_sample = per_sample + reward_loss
        return LossOutput(per_sample.mean(), per_sample.detach(), metrics)

    def fake_score_loss(self, prediction: Tensor, target: Tensor, weight: Tensor | None = None) -> LossOutput:
        """The denoising loss of the fake score.

        Args:
            prediction: prediction [B, ...] of the fake score.
            target: target [B, ...] of the same shape.
            weight: weights [B] of mean 1 over all ranks; None for equal weights.

        Raises:
            ValueError: for shapes that do not match.
        """
        if prediction.shape != target.shape:
            raise ValueError(f"target: must have prediction's shape {tuple(prediction.shape)}, got {tuple(target.shape)}")
        if weight is not None and weight.shape != prediction.shape[:1]:
            raise ValueError(f"weight: must have shape {tuple(prediction.shape[:1])}, got {tuple(weight.shape)}")
        per_sample = fake_score_loss_per_sample(prediction, target, weight)
        return LossOutput(per_sample.mean(), per_sample.detach(), {})

    def operator(self) -> Maker:
        """The operator H of the student's direction, before normalisation."""
        return operators.chain(operators.dmd(self.guidance_scale), *self._masks())

    def direction_metrics(self, direction: Direction) -> dict[str, Tensor]:
        """Metrics of a subclass's part in the direction, 0-dim tensors; none for DMD."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """JSON-able state: running statistics of rewards; empty if no reward is used."""
        return {"rewards": self.statistics.state_dict()} if self.needs.reward else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` gave.

        Raises:
            InputError: for the state of another objective.
        """
        expect_keys(state, self.state_dict(), type(self).__name__)
        if self.needs.reward:
            self.statistics.load_state_dict(state["rewards"])

    def _observe(self, reward: Tensor, groups: Tensor, rung: int) -> None:
        """Updates the running spread of rewards [B] of a rung, which the next student turn uses."""
        self.statistics.update(reward, groups, rung)
        self._spread, self._widest = self.statistics.spread(rung), self.statistics.widest(rung)

    def _masks(self) -> list[Transform]:
        return [] if self.guidance_window is None else [operators.window(guide=self.guidance_window)]

    def _reward_loss(self, signals: Signals, direction: Direction) -> tuple[Tensor, Tensor]:
        """``- weight r / spread of its rung`` [B], with 0 for failed rewards, and the share of failed rewards."""
        if signals.reward is None:
            raise ValueError("Signals.reward: a differentiable reward is needed by objective.needs.reward_gradient, got None")
        finite = torch.isfinite(signals.reward)
        reward = torch.where(finite, signals.reward, 0.0)
        spread = self._widest_spread(signals.rung, reward)
        in_spreads = widen(reward) / torch.where(spread > 0, spread, 1.0)
        reward_loss = -self.schedule_factor * self._reward_weight(in_spreads, signals, direction) * in_spreads
        return reward_loss, 1 - finite.float().mean()

    def _reward_weight(self, in_spreads: Tensor, signals: Signals, direction: Direction) -> float | Tensor:
        """Weight of the samples' rewards, given `in_spreads` [B], beside the matching loss along `direction`."""
        return self.reward_gradient

    def _widest_spread(self, rungs: Tensor | None, like: Tensor) -> Tensor:
        """The widest spread [B] at each sample's rung; where that is unknown, of the rung scored last."""
        last = self._widest.to(like)
        if rungs is None:
            return last
        of_rung = {rung: self.statistics.widest(rung).to(like) for rung in set(rungs.tolist())}
        own = torch.stack([of_rung[rung] for rung in rungs.tolist()])
        return torch.where(own > 0, own, last)


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
    """Decoupled DMD: independent draws of the noise levels of guidance and matching, each from a range of its own."""
    return DMDObjective(**dict(made(DecoupledDMDOptions, {"guidance_scale": guidance_scale, **options})))


def expect_keys(state: Mapping[str, Any], own: Iterable[str], name: str) -> None:
    """Raises InputError if `state` has other keys than `own`, a state of the objective `name`."""
    if set(state) != set(own):
        message = f"must have the keys {sorted(own)}, got {sorted(state)}"
        raise InputError(f"state of {name}: {message}. It belongs to another objective, or to other options of this one")
