"""The objectives a host calls: signals and rewards in, losses and metrics out.

They own no optimizer, device, `requires_grad` toggle or process group. A host makes one, asks for losses, steps its own
optimizers, and stores `state_dict()`:

    advantage = objective.advantage(reward, groups)                   # the joined batch of all ranks
    loss = objective.student_loss(Signals(x0, cond, uncond, fake, sigma, advantage)).loss
    ...
    weight = objective.sharpening_weights(advantage)                  # likewise
    loss = objective.fake_score_loss(prediction, target, weight).loss
"""

import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from amd_plugin import operators
from amd_plugin.advantage import Scale, Squash, group_advantage, group_std
from amd_plugin.adversarial import Adversarial, adversarial
from amd_plugin.errors import InputError, OptionError
from amd_plugin.losses import fake_score_loss_per_sample, matching_loss_per_sample
from amd_plugin.operators import Maker, Side, Window, adaptation_weights, normalize
from amd_plugin.sharpening import LARGEST, Kind, sharpening_weights
from amd_plugin.signals import Signals


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
    """DMD2's matching loss: the baseline, and the frame that AMD fills in.

    Args:
        guidance_scale: w of the real teacher in the standard form ``uncond + w (cond - uncond)``; 1 needs no uncond.
        normalizer: ``per_sample`` (DMD2) or ``global`` (FastVideo; depends on how a batch is split), see `operators.normalize`.
        guidance_sigma: (low, high) noise levels at which the host evaluates the guidance term in a draw and a teacher call
            of its own; None evaluates it where matching is evaluated.
        match_sigma: (low, high) noise levels of the matching term; None leaves them to the host.
        gan_weight: of DMD2's adversarial loss, which needs a host with a discriminator; 0 leaves it out.
        gan_r1, gan_r1_sigma: weight and noise of its approximate R1 penalty, see `amd_plugin.adversarial`.

    Attributes:
        adversarial: the adversarial branch, None without one.

    Raises:
        OptionError: for a value out of range.
    """

    needs_reward = False
    min_group_size = 1

    def __init__(
        self,
        guidance_scale: float = 1.0,
        *,
        normalizer: Literal["per_sample", "global"] = "per_sample",
        guidance_sigma: Window | None = None,
        match_sigma: Window | None = None,
        gan_weight: float = 0.0,
        gan_r1: float = 0.0,
        gan_r1_sigma: float = 0.01,
    ):
        if not math.isfinite(guidance_scale) or guidance_scale < 0:
            raise OptionError("guidance_scale", f"must be a number of at least 0, got {guidance_scale}")
        for option, value in (("guidance_sigma", guidance_sigma), ("match_sigma", match_sigma)):
            if value is not None and not 0 <= value[0] < value[1]:
                raise OptionError(option, f"must be [low, high] with 0 <= low < high, got {list(value)}")
        self.guidance_scale = guidance_scale
        self.guidance_sigma = guidance_sigma
        self.match_sigma = match_sigma
        self.strength_scale = 1.0
        self.adversarial: Adversarial | None = adversarial(gan_weight, gan_r1, gan_r1_sigma)
        self._normalize = normalize(normalizer)

    @property
    def needs_uncond(self) -> bool:
        """Whether `Signals` must carry unconditional predictions: not at guidance scale 1, where their term is 0."""
        return self.guidance_scale != 1

    def advantage(self, reward: Tensor, groups: Tensor) -> Tensor:
        """[B] zeros: plain DMD listens to no reward."""
        return torch.zeros_like(reward)

    def sharpening_weights(self, advantage: Tensor) -> Tensor:
        """[B] ones: plain DMD trains its fake score on all samples alike."""
        return torch.ones_like(advantage)

    def student_loss(self, signals: Signals) -> LossOutput:
        """The surrogate loss on `signals.x0`, in fp32 or wider.

        Raises:
            ValueError: where shapes do not match, or the unconditional prediction is missing at a guidance scale other than 1.
        """
        signals.check()
        if self.needs_uncond and signals.real_uncond is None and signals.guide_uncond is None:
            raise ValueError(f"Signals.real_uncond: needed at guidance scale {self.guidance_scale}, got None")
        direction = operators.chain(self.operator(), self._normalize)(signals)
        per_sample = matching_loss_per_sample(signals.x0, direction.total())
        metrics = {"match_norm": _rms(direction.match), "guide_norm": _rms(direction.guide)}
        return LossOutput(per_sample.mean(), per_sample.detach(), metrics | self.direction_metrics(signals))

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
        return operators.dmd(self.guidance_scale)

    def direction_metrics(self, signals: Signals) -> dict[str, Tensor]:
        """What to log about this objective's own part in the direction."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """JSON-able state; empty here."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what `state_dict` gave.

        Raises:
            InputError: for the state of another objective.
        """
        _expect_keys(state, self.state_dict(), type(self).__name__)


def decoupled_dmd(
    guidance_scale: float = 1.5,
    *,
    normalizer: Literal["per_sample", "global"] = "per_sample",
    guidance_sigma: Window = (0.02, 0.98),
    match_sigma: Window | None = None,
) -> DMDObjective:
    """Decoupled DMD: guidance and matching draw their noise levels independently, each from a range of its own."""
    return DMDObjective(guidance_scale, normalizer=normalizer, guidance_sigma=guidance_sigma, match_sigma=match_sigma)


def dmd2(
    guidance_scale: float = 1.0,
    *,
    normalizer: Literal["per_sample", "global"] = "per_sample",
    guidance_sigma: Window | None = None,
    match_sigma: Window | None = None,
    gan_weight: float = 5e-3,
    gan_r1: float = 0.0,
    gan_r1_sigma: float = 0.01,
) -> DMDObjective:
    """DMD2: distribution matching and an adversarial loss, at the weight its authors use for SDXL."""
    windows = {"guidance_sigma": guidance_sigma, "match_sigma": match_sigma}
    gan = {"gan_weight": gan_weight, "gan_r1": gan_r1, "gan_r1_sigma": gan_r1_sigma}
    return DMDObjective(guidance_scale, normalizer=normalizer, **windows, **gan)  # type: ignore[arg-type]


class AMDObjective(DMDObjective):
    """Adaptive Matching Distillation (2602.07345); drops in for `DMDObjective`.

    With ``strength=0`` and ``sharpening=0`` it asks for no reward and equals `DMDObjective` to the bit.

    Args:
        guidance_scale, normalizer, guidance_sigma, match_sigma, gan_weight, gan_r1, gan_r1_sigma: as for `DMDObjective`.
        strength: s in [0, 1) of Dynamic Score Adaptation, Eq. 13; 0 turns it off.
        side: ``negative`` weighs failing samples only; ``both`` is the paper's form, which loses modes once there is
            guidance (see `operators.adapt`); ``auto`` is ``negative`` above guidance scale 1, ``both`` otherwise.
        sharpening: lambda >= 0 of Repulsive Landscape Sharpening, at most 1 for the linear kind; 0 turns it off.
        sharpening_kind: ``exponential`` (the exact reward tilt) or ``linear`` (the paper's), see `amd_plugin.sharpening`.
        scale, squash, limit: of `group_advantage`.
        std_floor: smallest spread to divide rewards by, as a share of the running mean of group spreads; 0 is the paper's form.
        zone: a sample with an advantage at or below this counts as lying in a Forbidden Zone, for the metrics only.

    Raises:
        OptionError: for a value out of range.
    """

    MOMENTUM = 0.99
    reward_options = ("sharpening", "strength")

    def __init__(
        self,
        guidance_scale: float = 1.0,
        *,
        normalizer: Literal["per_sample", "global"] = "per_sample",
        guidance_sigma: Window | None = None,
        match_sigma: Window | None = None,
        strength: float = 0.5,
        side: Literal["both", "negative", "auto"] = "auto",
        sharpening: float = 1.0,
        sharpening_kind: Kind = "exponential",
        scale: Scale = "group",
        squash: Squash = "clip",
        limit: float = 1.0,
        std_floor: float = 0.1,
        zone: float = -0.5,
        gan_weight: float = 0.0,
        gan_r1: float = 0.0,
        gan_r1_sigma: float = 0.01,
    ):
        super().__init__(
            guidance_scale, normalizer=normalizer, guidance_sigma=guidance_sigma, match_sigma=match_sigma,
            gan_weight=gan_weight, gan_r1=gan_r1, gan_r1_sigma=gan_r1_sigma,
        )  # fmt: skip
        if not 0 <= strength < 1:
            raise OptionError("strength", f"must be in [0, 1): at 1 the weight of matching reaches 0, got {strength}")
        if not 0 <= sharpening <= LARGEST:
            raise OptionError("sharpening", f"must be in [0, {LARGEST}], got {sharpening}")
        if sharpening_kind == "linear" and sharpening > 1:
            raise OptionError(
                "sharpening", f"must be in [0, 1] for the linear kind, whose weights would turn negative, got {sharpening}"
            )
        if not 0 < limit <= 1:
            raise OptionError("limit", f"must be in (0, 1], so that alpha and beta stay above 0, got {limit}")
        if squash is None and (strength > 0 or sharpening > 0):
            raise OptionError("squash", "must be 'clip' or 'tanh' while advantages are used, got None")
        if not (math.isfinite(std_floor) and std_floor >= 0):
            raise OptionError("std_floor", f"must be a number of at least 0, got {std_floor}")
        self.strength = strength
        self.side: Side = ("negative" if guidance_scale > 1 else "both") if side == "auto" else side
        self.sharpening, self.sharpening_kind = sharpening, sharpening_kind
        self.scale, self.squash, self.limit, self.std_floor, self.zone = scale, squash, limit, std_floor, zone
        self.needs_reward = strength > 0 or sharpening > 0
        self.min_group_size = 2 if self.needs_reward else 1
        self._updates = 0
        self._spread: Tensor = torch.zeros(())
        self._failed: Tensor = torch.zeros((), dtype=torch.long)
        self._failed_share: Tensor = torch.zeros(())

    def advantage(self, reward: Tensor, groups: Tensor) -> Tensor:
        """Group advantage [B] of the joined batch, Eq. 12, and an update of the running spread of rewards.

        Args:
            reward: [B], higher is better; NaN or infinite stands for a failed one and gets 0.
            groups: [B], the same number for samples of the same prompt.
        """
        reward = reward.detach().float()
        finite = torch.isfinite(reward)
        spread = torch.where(finite, group_std(reward, groups), 0.0).sum() / finite.sum().clamp(min=1)
        self._failed = self._failed.to(reward.device) + (~finite).sum()
        self._failed_share = 1 - finite.float().mean()
        if finite.any():  # a batch without any reward says nothing about their spread
            self._updates += 1
            momentum = min(self.MOMENTUM, 1 - 1 / self._updates)
            self._spread = momentum * self._spread.to(spread) + (1 - momentum) * spread
        return group_advantage(reward, groups, self.scale, self.squash, self.limit, std_floor=self.std_floor * self._spread)

    def sharpening_weights(self, advantage: Tensor) -> Tensor:
        """Weights [B] of mean 1 for the fake score's loss; give it the advantages of the joined batch."""
        return sharpening_weights(advantage, self.strength_scale * self.sharpening, self.sharpening_kind)

    def operator(self) -> Maker:
        """Eq. 10."""
        return operators.amd(self.guidance_scale, self.strength_scale * self.strength, self.side)

    def direction_metrics(self, signals: Signals) -> dict[str, Tensor]:
        """Advantages, the weights they make, and how many samples sit in the zone."""
        if signals.advantage is None:
            return {}
        a = signals.advantage.detach().float()
        alpha, beta = adaptation_weights(a, self.strength_scale * self.strength, self.side)
        return {
            "zone_share": (a <= self.zone).float().mean(),
            "clip_share": (a.abs() >= self.limit).float().mean(),
            "advantage_std": a.std(correction=0),
            "alpha": alpha.mean(),
            "beta": beta.mean(),
            "reward_spread": self._spread.clone(),
            "failed_rewards": self._failed_share,
        }

    def state_dict(self) -> dict[str, Any]:
        """JSON-able: running spread of rewards, number of updates, rewards that failed so far."""
        return {"updates": self._updates, "spread": self._spread.item(), "failed": int(self._failed.item())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what `state_dict` gave; raises InputError for the state of another objective."""
        _expect_keys(state, self.state_dict(), type(self).__name__)
        self._updates = int(state["updates"])
        self._spread = torch.tensor(float(state["spread"]))
        self._failed = torch.tensor(int(state["failed"]))


def _rms(x: Tensor) -> Tensor:
    return x.square().mean().sqrt()


def _expect_keys(state: dict[str, Any], own: dict[str, Any], name: str) -> None:
    if set(state) != set(own):
        raise InputError(
            f"state of {name}: must have the keys {sorted(own)}, got {sorted(state)}. It belongs to another objective"
        )
