"""Adaptive Matching Distillation (2602.07345) as an objective: DMD with a reward as the sensor of where the student fails.

Eq. 12: a, the advantage of each sample within its prompt. Eq. 10 and 13: the student moves along
``beta (d_real_cond - d_fake) + alpha (w - 1) d_ca``, see `operators.adapt`. Section 3.3: the fake score learns from
``mean of weight(a) |prediction - target|^2``, see `sharpening`.
"""

import logging
import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from amd_plugin.errors import OptionError
from amd_plugin.maths import operators
from amd_plugin.maths.advantage import Scale, Squash, group_advantage, group_std, quiet_share
from amd_plugin.maths.coherence import Coherence
from amd_plugin.maths.diagnostics import limit_share, weight_metrics, zone_metrics
from amd_plugin.maths.operators import Maker, Side, Window, inside
from amd_plugin.maths.sharpening import LARGEST, Kind, implied_tilt, sharpening_weights
from amd_plugin.maths.signals import Direction, Signals
from amd_plugin.objectives.dmd import DMDObjective, check_windows, expect_keys

log = logging.getLogger(__name__)

LOW_NOISE: Window = (0.0, 0.5)
WORDS: dict[str, tuple[Any, ...]] = {
    "side": (*get_args(Side), "auto"), "sharpening_kind": get_args(Kind), "baseline": ("group", "prompt"),
    "scale": get_args(Scale), "squash": ("clip", "tanh", None),
}  # fmt: skip
TOLERANCE = 0.5  # of a unit: one logit, where rewards are logits
LISTENED = 50  # batches without anything beyond the tolerance, before the user is told

UNHEARD = (
    "in the first %d batches rewards of a prompt hardly ever differed by more than objective.tolerance, %g %s, and count as "
    "equal: AMD is DMD here. If such differences matter, lower objective.tolerance%s"
)
STRANGERS = (
    "hardly any of the last %d prompts came twice, and objective.baseline 'prompt' compares with what a prompt did before: it "
    "is 'group' here, and nothing in groups of one"
)


class AMDObjective(DMDObjective):
    """Adaptive Matching Distillation (2602.07345); drops in for `DMDObjective`.

    With ``strength=0`` and ``sharpening=0`` it asks for no reward and equals `DMDObjective` to the bit.

    Args:
        guidance_scale, normalizer, guidance_sigma, guidance_window, match_sigma, reward_gradient, gan_weight, gan_r1,
            gan_r1_sigma: as for `DMDObjective`.
        strength: s in [0, 1) of Dynamic Score Adaptation, Eq. 13; 0 turns it off. ``auto`` is 0.5 where guidance
            is 2 or more at all noise levels, and 0 elsewhere, where it costs modes and gives nothing (docs/evidence.md).
        side: ``negative`` weighs failing samples only; ``guidance_only`` takes guidance from them and nothing else; ``both`` is
            the paper's form, which loses modes once there is guidance (see `operators.adapt`); ``auto`` is ``negative`` above
            guidance scale 1, ``both`` otherwise.
        static: the control: every sample gets the whole batch's mean alpha and beta (`Signals.batch_advantage`).
        coherence_gate: let beta rise above 1 only as far as the matching direction agrees with itself in the zone at that
            noise level, see `amd_plugin.maths.coherence`. Needs `Signals.groups` and `sigma`, and goes not with `static`.
        sharpening: lambda >= 0 of Repulsive Landscape Sharpening, at most 1 for the linear kind; 0 turns it off.
        sharpening_kind: ``exponential`` (the exact reward tilt) or ``linear`` (the paper's), see `amd_plugin.maths.sharpening`.
        sharpening_sigma: (low, high) noise levels at which the fake score's loss is weighted; None is all. Low levels only
            tilt within modes and leave the masses of modes to the unweighted high ones. ``auto`` is all of them where
            advantages have a unit or guidance is 2 or more at all levels, (0, 0.5), fractions of the schedule, elsewhere.
        baseline: what a reward is compared with: ``group``, the other samples of its prompt in the batch, or ``prompt``, the
            prompt's running mean, over one running spread (see `amd_plugin.objectives.reward_statistics`).
        scale, squash, limit: of `group_advantage`; `scale` says nothing about the ``prompt`` baseline.
        unit: what rewards are divided by, in place of their own spread: a clear difference. A spread makes the
            worst of eight good samples as bad as a failure; a unit leaves them alone, so that a teacher that is right is
            followed, and one that is not is corrected. 0: the spread, the paper's form. ``auto``: `reward_unit`; 0 where
            guidance is 2 or more at all levels, since there every sample suffers, or `scale` asks for another spread.
        tolerance: differences of at most this, in units (or spreads), count as none, and larger ones by what they exceed
            it: how a reward ranks good samples says less of the teacher than of the reward. ``auto``: 0.5 with a unit, else 0.
        std_floor: without a unit, the smallest spread to divide by, as a share of the running mean of group spreads.
        memory_share: share in [0, 1) of the samples the fake score learns from that are taken from a memory of failures:
            the host keeps the `memory_size` latest of those that did worst, an eighth of each batch. Needs a host with one.
        memory_size: see `memory_share`.
        zone: in [-1, 0); a sample with an advantage at or below this, or at -`limit`, counts as lying in a Forbidden Zone, for
            metrics and coherence.

    Attributes:
        reward_unit: what the rewards' unit is (`amd_plugin.rewards.protocol.Traits`), written by the host; 0: nobody knows.

    Raises:
        OptionError: for a value out of range.
    """

    reward_options = ("sharpening", "strength", "reward_gradient")

    def __init__(
        self,
        guidance_scale: float = 1.0,
        *,
        normalizer: Literal["per_sample", "global"] = "per_sample",
        guidance_sigma: Window | None = None,
        guidance_window: Window | None = None,
        match_sigma: Window | None = None,
        strength: float | Literal["auto"] = "auto",
        side: Literal["both", "negative", "guidance_only", "auto"] = "auto",
        static: bool = False,
        coherence_gate: bool = False,
        sharpening: float = 1.0,
        sharpening_kind: Kind = "exponential",
        sharpening_sigma: Window | Literal["auto"] | None = "auto",
        baseline: Literal["group", "prompt"] = "group",
        scale: Scale = "group",
        squash: Squash = "clip",
        limit: float = 1.0,
        unit: float | Literal["auto"] = "auto",
        tolerance: float | Literal["auto"] = "auto",
        std_floor: float = 0.1,
        memory_share: float = 0.0,
        memory_size: int = 384,
        zone: float = -0.5,
        reward_gradient: float = 0.0,
        gan_weight: float = 0.0,
        gan_r1: float = 0.0,
        gan_r1_sigma: float = 0.01,
    ):
        super().__init__(
            guidance_scale, normalizer=normalizer, guidance_sigma=guidance_sigma, guidance_window=guidance_window,
            match_sigma=match_sigma, reward_gradient=reward_gradient,
            gan_weight=gan_weight, gan_r1=gan_r1, gan_r1_sigma=gan_r1_sigma,
        )  # fmt: skip
        _expect_words(side=side, sharpening_kind=sharpening_kind, baseline=baseline, scale=scale, squash=squash)
        _expect_numbers_or_auto(strength=strength, unit=unit, tolerance=tolerance)
        # Guidance that overshoots at every noise level is what adaptation and sharpening at every level are for.
        overshoots = guidance_scale >= 2 and all(_everywhere(window) for window in (guidance_sigma, guidance_window))
        if strength == "auto":
            strength = 0.5 if overshoots else 0.0
        _expect("strength", strength, 0 <= strength < 1, "in [0, 1): at 1 the weight of matching reaches 0")
        _expect("sharpening", sharpening, 0 <= sharpening <= LARGEST, f"in [0, {LARGEST}]")
        linear = "in [0, 1] for the linear kind, whose weights would turn negative"
        _expect("sharpening", sharpening, sharpening_kind == "exponential" or sharpening <= 1, linear)
        check_windows(sharpening_sigma=None if sharpening_sigma == "auto" else sharpening_sigma)
        _expect("limit", limit, 0 < limit <= 1, "in (0, 1], so that alpha and beta stay above 0")
        unused = strength == sharpening == 0
        _expect("squash", squash, squash is not None or unused, "'clip' or 'tanh' while advantages are used")
        _expect("std_floor", std_floor, math.isfinite(std_floor) and std_floor >= 0, "a number of at least 0")
        _expect("memory_share", memory_share, 0 <= memory_share < 1, "in [0, 1)")
        _expect("memory_size", memory_size, memory_size >= 1, "at least 1")
        _expect("zone", zone, -1 <= zone < 0, "in [-1, 0)")
        gated = static and coherence_gate
        _expect("static", static, not gated, "false with coherence_gate, which gives each sample its own weight")
        if side == "both" and guidance_scale > 1 and strength > 0:
            log.warning(
                "side 'both' at guidance scale %g multiplies guidance by up to %g for the samples that do best, which loses "
                "modes. Choose 'negative' or 'auto'", guidance_scale, (1 + strength) / (1 - strength),
            )  # fmt: skip
        self.strength = strength
        self.side: Side = ("negative" if guidance_scale > 1 else "both") if side == "auto" else side
        self.static, self.coherence_gate = static, coherence_gate
        self.sharpening, self.sharpening_kind, self._sharpening_sigma = sharpening, sharpening_kind, sharpening_sigma
        self.baseline, self.scale, self.squash, self.limit = baseline, scale, squash, limit
        self._unit, self._tolerance, self._overshoots, self.reward_unit = unit, tolerance, overshoots, 0.0
        self.std_floor, self.zone = std_floor, max(zone, -limit)
        self.memory_share, self.memory_size = memory_share, memory_size
        compares = strength > 0 or sharpening > 0 or memory_share > 0
        self.needs_reward = compares or reward_gradient > 0
        within_groups = compares and baseline == "group"
        if within_groups:
            self.min_group_size, self.recommended_group_size = 2, 4
        self._coherence = Coherence()
        self._failed: Tensor = torch.zeros((), dtype=torch.long)
        self._heard = dict[str, Tensor]()  # what the last batch of rewards said, as metrics
        self._listened, self._known, self._told = 0, 0.0, False
        # Samples in groups whose rewards differ, and those of them that the tolerance leaves nothing of.
        self._differing = torch.zeros(2)

    @property
    def unit(self) -> float:
        """What rewards are divided by; 0: their own spread."""
        if self._unit == "auto":
            other_spread = self.baseline == "group" and self.scale != "group"
            return 0.0 if self._overshoots or other_spread else self.reward_unit
        return self._unit

    @property
    def tolerance(self) -> float:
        """Differences that count as none, in units, or spreads where there is no unit."""
        if self._tolerance == "auto":
            return TOLERANCE if self.unit else 0.0
        return self._tolerance

    @property
    def sharpening_sigma(self) -> Window | None:
        """Noise levels at which the fake score's loss is weighted; None: all."""
        if self._sharpening_sigma == "auto":
            return None if self._overshoots or self.unit else LOW_NOISE
        return self._sharpening_sigma

    def advantage(self, reward: Tensor, groups: Tensor, rung: int = 0) -> Tensor:
        """Advantage [B] of the joined batch, Eq. 12, and an update of the running statistics of rewards.

        Args:
            reward: [B], higher is better; NaN or infinite stands for a failed one and gets 0.
            groups: [B], the same number for samples of the same prompt; with the ``prompt`` baseline, in every batch.
            rung: the student's exit rung, from 0; each has statistics of its own.
        """
        reward = reward.detach().float()
        finite = torch.isfinite(reward)
        self._failed = self._failed.to(reward.device) + (~finite).sum()
        self._observe(reward, groups, rung)
        floor, squash, limit, tolerance = self.std_floor * self._spread, self.squash, self.limit, self.tolerance
        if self.baseline == "prompt":
            a = self.statistics.prompt_advantage(reward, groups, rung, squash, limit, float(floor), self.unit, tolerance)
        elif self.unit:
            a = group_advantage(reward / self.unit, groups, "none", squash, limit, tolerance=tolerance)
        else:
            a = group_advantage(reward, groups, self.scale, squash, limit, floor, tolerance)
        self._heard = {"failed_rewards": 1 - finite.float().mean(), "quiet_share": quiet_share(a, groups)}
        if self.baseline == "prompt":
            self._heard["known_prompts"] = torch.tensor(self.statistics.known_prompts, device=a.device)
        else:
            self._heard["zero_spread_share"] = (group_std(reward, groups) == 0).float().mean()
        self._tell_if_deaf()
        return a

    def sharpening_weights(self, advantage: Tensor, sigma: Tensor | None = None) -> Tensor:
        """Weights [B] for the fake score's loss; give it the advantages of the joined batch.

        Args:
            advantage: [B].
            sigma: noise levels [B] at which the fake score is trained, in the units of `sharpening_sigma`.

        Returns:
            [B], mean 1; with `sharpening_sigma` exactly 1 outside of it, and mean 1 in expectation.

        Raises:
            ValueError: without `sigma`, where `sharpening_sigma` was given.
        """
        weights = sharpening_weights(advantage, self.strength_scale * self.sharpening, self.sharpening_kind)
        if sigma is None and self._sharpening_sigma not in ("auto", None):
            raise ValueError("sigma: needed by objective.sharpening_sigma, and this host gives none")
        if (window := self.sharpening_sigma) is None or sigma is None:
            return weights
        return torch.where(inside(sigma, window), weights, 1.0)

    def operator(self) -> Maker:
        """Eq. 10."""

        def make(signals: Signals) -> Direction:
            direction: Direction = super(AMDObjective, self).operator()(signals)
            coherence = self._measured_coherence(direction)
            strength = self.strength_scale * self.strength
            adapted: Direction = operators.adapt(strength, self.side, static=self.static, coherence=coherence)(direction)
            return adapted

        return make

    def direction_metrics(self, direction: Direction) -> dict[str, Tensor]:
        """Advantages, the weights they make, what those imply, and how many samples sit in the zone."""
        signals = direction.signals
        if signals.advantage is None:
            return {}
        a = signals.advantage.detach().float()
        whole = a if signals.batch_advantage is None else signals.batch_advantage.detach().float()
        ratio, divergence = implied_tilt(whole, self.strength_scale * self.sharpening, self.sharpening_kind)
        metrics = {
            "clip_share": limit_share(whole, self.limit, self.squash),
            "advantage_std": whole.std(correction=0),
            "reward_spread": self._spread.clone(),
            "reward_unit": torch.tensor(float(self.unit), device=a.device),
            "tilt_ratio": ratio,
            "tilt_kl": divergence,
            **self._heard,
            **zone_metrics(direction, a <= self.zone),
            **weight_metrics(direction, self.guidance_window),
        }
        if signals.sigma is not None and signals.groups is not None:
            metrics |= self._coherence.metrics()
        return metrics

    @property
    def shared_sums(self) -> list[Tensor]:
        """Running sums over this process's samples; several average each over all, in place, after every student turn."""
        return [self._coherence.sums] if self._coherence.measured else []

    def state_dict(self) -> dict[str, Any]:
        """JSON-able: running statistics of rewards and of coherence, and rewards that failed so far."""
        own = {"coherence": self._coherence.state_dict(), "failed": int(self._failed.item())}
        return super().state_dict() | own

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what `state_dict` gave; raises InputError for the state of another objective."""
        expect_keys(state, self.state_dict(), type(self).__name__)
        if self.needs_reward:
            self.statistics.load_state_dict(state["rewards"])
        self._coherence.load_state_dict(state["coherence"])
        self._failed = torch.tensor(int(state["failed"]))

    def _tell_if_deaf(self) -> None:
        """Warns, once each, where rewards say next to nothing by the way that they are compared."""
        self._listened += 1
        if self.baseline == "prompt":
            self._known += self.statistics.known_prompts
            if self.statistics.forgets and not self._told and self._known < 0.1 * self._listened:
                log.warning(STRANGERS, self.statistics.PROMPTS)
                self._told = True
        elif self.tolerance and self._listened <= LISTENED:
            equal, quiet = self._heard["zero_spread_share"], self._heard["quiet_share"]
            self._differing = self._differing.to(equal) + torch.stack((1 - equal, quiet - equal))
            if self._listened == LISTENED and self._differing[1] > max(1, 0.95 * float(self._differing[0])):
                kind, lever = ("units", f" or objective.unit ({self.unit:g})") if self.unit else ("spreads", "")
                log.warning(UNHEARD, LISTENED, self.tolerance, kind, lever)

    def _measured_coherence(self, direction: Direction) -> Tensor | None:
        """Takes in the batch's matching directions; the running coherence [B] of each sample's place, where it is asked for."""
        signals = direction.signals
        if signals.advantage is None or signals.sigma is None or signals.groups is None:
            if self.coherence_gate and signals.advantage is not None:
                raise ValueError("Signals.sigma and groups: needed by objective.coherence_gate, and this host gives none")
            return None
        zone = signals.advantage <= self.zone
        self._coherence.update(direction.match, signals.sigma, signals.groups, zone)
        return self._coherence.of(signals.sigma, zone) if self.coherence_gate else None


def _expect(option: str, value: Any, holds: bool, what: str) -> None:
    if not holds:
        raise OptionError(option, f"must be {what}, got {value!r}")


def _expect_words(**options: Any) -> None:
    for name, word in options.items():
        _expect(name, word, word in WORDS[name], f"one of {', '.join(map(str, WORDS[name]))}")


def _expect_numbers_or_auto(**options: Any) -> None:
    for name, value in options.items():
        number = isinstance(value, int | float) and math.isfinite(value) and value >= 0
        _expect(name, value, number or value == "auto", "'auto' or a number of at least 0")


def _everywhere(window: Window | None) -> bool:
    """Whether these are all noise levels, as far as training draws them."""
    return window is None or (window[0] <= 0.02 and window[1] >= 0.98)
