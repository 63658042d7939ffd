"""What a host calls: signals and rewards in, losses and metrics out. DMD here, and the frame that AMD fills in.

They own no optimizer, device, `requires_grad` toggle or process group. A host makes one, asks for losses, steps its own
optimizers, and stores `state_dict()`:

    advantage = objective.advantage(reward, groups)                   # the joined batch of all ranks
    loss = objective.student_loss(Signals(x0, cond, uncond, fake, sigma, advantage)).loss
    ...
    weight = objective.sharpening_weights(advantage)                  # likewise
    loss = objective.fake_score_loss(prediction, target, weight).loss
"""

import math
from typing import Any, Literal

import torch
from torch import Tensor

from amd_plugin.errors import InputError, OptionError
from amd_plugin.maths import operators
from amd_plugin.maths.adversarial import Adversarial, adversarial
from amd_plugin.maths.diagnostics import term_metrics
from amd_plugin.maths.losses import LossOutput, fake_score_loss_per_sample, matching_loss_per_sample
from amd_plugin.maths.operators import Maker, Transform, Window, normalize
from amd_plugin.maths.prediction import widen
from amd_plugin.maths.signals import Direction, Signals
from amd_plugin.objectives.reward_statistics import RewardStatistics


class DMDObjective:
    """DMD2's matching loss: the baseline, and the frame that AMD fills in.

    Args:
        guidance_scale: w of the real teacher in the standard form ``uncond + w (cond - uncond)``; 1 needs no uncond.
        normalizer: ``per_sample`` (DMD2) or ``global`` (FastVideo; depends on how a batch is split), see `operators.normalize`.
        guidance_sigma: (low, high) noise levels at which the host evaluates the guidance term in a draw and a teacher call
            of its own; None evaluates it where matching is evaluated.
        guidance_window: (low, high) noise levels outside which the guidance term is left out, where matching is evaluated: a
            mask without a call of its own, weaker than `guidance_sigma`. Not both.
        match_sigma: (low, high) noise levels of the matching term; None leaves them to the host.
        reward_gradient: weight of a differentiable reward's own gradient, ``- reward_gradient * mean(r / spread)`` added to the
            loss (DMDR, 2511.13649, has it plain), `spread` being the widest that the running mean of the reward's spread within
            prompts has been: one that shrank with the student would pull harder the less there is to gain. It needs no
            sensor: strong, and the first to be hacked. 0 leaves it out.
        gan_weight: of DMD2's adversarial loss, which needs a host with a discriminator; 0 leaves it out.
        gan_r1, gan_r1_sigma: weight and noise of its approximate R1 penalty, see `amd_plugin.maths.adversarial`.

    Attributes:
        adversarial: the adversarial branch, None without one.

    Raises:
        OptionError: for a value out of range.
    """

    min_group_size = 1
    recommended_group_size = 1
    per_rung = True

    def __init__(
        self,
        guidance_scale: float = 1.0,
        *,
        normalizer: Literal["per_sample", "global"] = "per_sample",
        guidance_sigma: Window | None = None,
        guidance_window: Window | None = None,
        match_sigma: Window | None = None,
        reward_gradient: float = 0.0,
        gan_weight: float = 0.0,
        gan_r1: float = 0.0,
        gan_r1_sigma: float = 0.01,
    ):
        if not math.isfinite(guidance_scale) or guidance_scale < 0:
            raise OptionError("guidance_scale", f"must be a number of at least 0, got {guidance_scale}")
        check_windows(guidance_sigma=guidance_sigma, guidance_window=guidance_window, match_sigma=match_sigma)
        if guidance_sigma is not None and guidance_window is not None:
            raise OptionError(
                "guidance_window", f"guidance_sigma draws the levels already, got both; leave out {guidance_window}"
            )
        if not math.isfinite(reward_gradient) or reward_gradient < 0:
            raise OptionError("reward_gradient", f"must be a number of at least 0, got {reward_gradient}")
        self.guidance_scale = guidance_scale
        self.guidance_sigma = guidance_sigma
        self.guidance_window = guidance_window
        self.match_sigma = match_sigma
        self.reward_gradient = reward_gradient
        self.needs_reward = reward_gradient > 0
        if reward_gradient > 0:
            self.min_group_size = self.recommended_group_size = 2  # a spread of one sample is none
        self.statistics = RewardStatistics()
        self._spread: Tensor = torch.zeros(())
        self._widest: Tensor = torch.zeros(())
        self.strength_scale = 1.0
        self.adversarial: Adversarial | None = adversarial(gan_weight, gan_r1, gan_r1_sigma)
        self._normalize = normalize(normalizer)

    @property
    def needs_uncond(self) -> bool:
        """Whether `Signals` must carry unconditional predictions: not at guidance scale 1, where their term is 0."""
        return self.guidance_scale != 1

    def advantage(self, reward: Tensor, groups: Tensor, rung: int = 0) -> Tensor:
        """[B] zeros: plain DMD compares no samples. It takes in the spread of rewards where it follows their gradient."""
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
        if self.needs_uncond and signals.real_uncond is None and signals.guide_uncond is None:
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
        """JSON-able: running statistics of rewards; empty where it listens to none."""
        return {"rewards": self.statistics.state_dict()} if self.needs_reward else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what `state_dict` gave.

        Raises:
            InputError: for the state of another objective.
        """
        expect_keys(state, self.state_dict(), type(self).__name__)
        if self.needs_reward:
            self.statistics.load_state_dict(state["rewards"])

    def _observe(self, reward: Tensor, groups: Tensor, rung: int) -> None:
        """Takes in the spread of rewards [B]; the student's turn that follows uses that of its rung."""
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
        following = -self.strength_scale * self.reward_gradient * widen(reward) / torch.where(spread > 0, spread, 1.0)
        return following, 1 - answered.float().mean()


def decoupled_dmd(
    guidance_scale: float = 1.5,
    *,
    normalizer: Literal["per_sample", "global"] = "per_sample",
    guidance_sigma: Window = (0.02, 0.98),
    match_sigma: Window | None = None,
    reward_gradient: float = 0.0,
) -> DMDObjective:
    """Decoupled DMD: guidance and matching draw their noise levels independently, each from a range of its own."""
    return DMDObjective(
        guidance_scale, normalizer=normalizer, guidance_sigma=guidance_sigma, match_sigma=match_sigma,
        reward_gradient=reward_gradient,
    )  # fmt: skip


def dmd2(
    guidance_scale: float = 1.0,
    *,
    normalizer: Literal["per_sample", "global"] = "per_sample",
    guidance_sigma: Window | None = None,
    guidance_window: Window | None = None,
    match_sigma: Window | None = None,
    reward_gradient: float = 0.0,
    gan_weight: float = 5e-3,
    gan_r1: float = 0.0,
    gan_r1_sigma: float = 0.01,
) -> DMDObjective:
    """DMD2: distribution matching and an adversarial loss, at the weight its authors use for SDXL."""
    windows = {"guidance_sigma": guidance_sigma, "guidance_window": guidance_window, "match_sigma": match_sigma}
    gan = {"gan_weight": gan_weight, "gan_r1": gan_r1, "gan_r1_sigma": gan_r1_sigma}
    return DMDObjective(guidance_scale, normalizer=normalizer, reward_gradient=reward_gradient, **windows, **gan)  # type: ignore[arg-type]


def check_windows(**windows: Window | None) -> None:
    """Raises OptionError for a (low, high) that is no range of noise levels."""
    for option, value in windows.items():
        if value is not None and not 0 <= value[0] < value[1]:
            raise OptionError(option, f"must be [low, high] with 0 <= low < high, got {list(value)}")


def expect_keys(state: dict[str, Any], own: dict[str, Any], name: str) -> None:
    """Raises InputError where `state` has not the keys of `own`, a state of the objective `name`."""
    if set(state) != set(own):
        raise InputError(
            f"state of {name}: must have the keys {sorted(own)}, got {sorted(state)}. It belongs to another objective"
        )
