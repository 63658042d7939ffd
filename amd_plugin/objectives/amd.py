"""Adaptive Matching Distillation (2602.07345) as an objective: DMD with a reward that marks where the student fails.

Eq. 12 defines a, the advantage of each sample within its prompt. By Eq. 10 and 13 the student moves along
``beta (d_real_cond - d_fake) + alpha (w - 1) d_ca``, see `operators.adapt`. By section 3.3 the loss of the fake score is
``mean of weight(a) |prediction - target|^2``, see `sharpening`.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from amd_plugin.hookspecs import IF_OFFERED, Needs
from amd_plugin.maths import operators
from amd_plugin.maths.advantage import group_advantage, group_std, quiet_share, scored
from amd_plugin.maths.advantage_guidance import failure_probability, guide_by_advantage, outcomes
from amd_plugin.maths.coherence import Coherence
from amd_plugin.maths.diagnostics import clip_share, weight_metrics, zone_metrics
from amd_plugin.maths.operators import Maker, Window, inside
from amd_plugin.maths.sharpening import implied_tilt, sharpening_weights
from amd_plugin.maths.signals import Direction, Signals
from amd_plugin.objectives.amd_options import (
    AMDOptions,
    check_amd,
    resolved_sharpening_sigma,
    resolved_side,
    resolved_strength,
    resolved_tolerance,
    resolved_unit,
)
from amd_plugin.objectives.contrast_monitor import ContrastMonitor
from amd_plugin.objectives.contrast_statistics import (
    LARGEST,
    NATS,
    REST,
    ContrastStatistics,
    automatic_scale,
    confidence,
    contrast_metrics,
    evidence_by_zone,
    log_success,
)
from amd_plugin.objectives.dmd import DMDObjective, expect_keys
from amd_plugin.objectives.gradient_statistics import RATIO, GradientStatistics
from amd_plugin.objectives.kl_budget import KLBudget
from amd_plugin.objectives.reward_monitor import RewardMonitor
from amd_plugin.options import made, takes

log = logging.getLogger(__name__)

ZONE = -0.5  # a sample with an advantage at or below this counts as lying in a Forbidden Zone


class AMDObjective(DMDObjective):
    """Adaptive Matching Distillation (2602.07345), a drop-in replacement of `DMDObjective`.

    With ``strength=0`` and ``sharpening=0`` no reward is used, and it equals `DMDObjective` to the bit.

    Args:
        guidance_scale: guidance scale w of the teacher, as for `DMDObjective`.
        options: further options of `AMDOptions`, by name.

    Attributes:
        strength: adaptation strength s.
        side: samples that adaptation weighs.
        sharpening, sharpening_kind: sharpening lambda, with option `kl` that of the last batch, and the form of its weights.
        static: whether every sample gets the batch's mean weights.

    Raises:
        OptionError: for a value out of range, or options that do not go together.
    """

    @takes(AMDOptions)
    def __init__(self, guidance_scale: float = 1.0, **options: Any):
        self._options = made(AMDOptions, {"guidance_scale": guidance_scale, **options})
        check_amd(self._options)
        self._set_up(self._options)
        self.strength, self.side = resolved_strength(self._options), resolved_side(self._options)
        self.sharpening, self.sharpening_kind = self._options.sharpening, self._options.sharpening_kind
        self.static = self._options.static
        self._sharpens = self.sharpening > 0 and self._options.kl != 0
        self._kl = None if self._options.kl is None else KLBudget(self._options.kl)
        if self._kl is not None:
            self.sharpening = self._kl.tilt()
        self._contrast, self._rest, self._offered = ContrastStatistics(), KLBudget(NATS), False
        self._gradient = GradientStatistics()
        if self.side == "both" and guidance_scale > 1 and self.strength > 0:
            most = (1 + self.strength) / (1 - self.strength)
            log.warning(
                "objective.side 'both' at guidance scale %g multiplies guidance by up to %g for the best samples, which loses "
                "modes. Choose 'negative' or 'auto'", guidance_scale, most,
            )  # fmt: skip
        self._coherence, self._monitor, self._contrast_monitor = Coherence(), RewardMonitor(), ContrastMonitor()
        self._failed: Tensor = torch.zeros((), dtype=torch.long)

    @property
    def needs(self) -> Needs:
        """Everything the objective needs from a host."""
        share, gamma = self._options.memory_share, self._options.advantage_guidance
        compares, dmd_needs = self.strength > 0 or self._sharpens or share > 0 or gamma != 0 or self._climbs, super().needs
        gradient = IF_OFFERED if self._options.advantage_gradient == "auto" else self._climbs
        return replace(
            dmd_needs, reward=dmd_needs.reward or compares, replay=share, fake_score_weight=self._sharpens,
            group_size=2 if compares else dmd_needs.group_size,
            recommended_group_size=4 if compares else dmd_needs.recommended_group_size,
            fake_score_noise_level=isinstance(self._options.sharpening_sigma, tuple),
            reward_gradient=dmd_needs.reward_gradient or gradient,
            fake_score_rung=IF_OFFERED if self._kl is not None else False,
            fake_score_outcome=IF_OFFERED if gamma == "auto" else gamma != 0,
        )  # fmt: skip

    @property
    def reward_levers(self) -> Mapping[str, float]:
        """Options that set the influence of the reward, with their values."""
        gamma = self._options.advantage_guidance
        return {
            "advantage_guidance": 1.0 if gamma == "auto" else gamma,
            **({"sharpening": self.sharpening} if self._kl is None else {"kl": self._kl.nats}),
            "strength": self.strength,
            "advantage_gradient": self._ratio,
            **super().reward_levers,
        }

    @property
    def unit(self) -> float:
        """Divisor of rewards; 0 stands for their own spread."""
        return resolved_unit(self._options, self.reward_unit, float(self._spread))

    @property
    def tolerance(self) -> float:
        """Reward difference that counts as none, in units, or in spreads without a unit."""
        return resolved_tolerance(self._options, self.unit)

    @property
    def sharpening_sigma(self) -> Window | None:
        """Noise levels at which the fake score's loss is weighted; None stands for all."""
        return resolved_sharpening_sigma(self._options, self.unit)

    def advantage(self, reward: Tensor, groups: Tensor, rung: int = 0) -> Tensor:
        """Advantages [B] of the batch of all ranks, Eq. 12. Updates the running statistics of rewards.

        Args:
            reward: rewards [B], higher is better; NaN or infinite for a failed one, which gets advantage 0.
            groups: prompt ids [B], the same number for samples of the same prompt.
            rung: index of the student's exit rung, from 0; each rung has its own statistics.
        """
        self._finish_turn()
        reward = reward.detach().float()
        finite = scored(reward)
        self._failed = self._failed.to(reward.device) + (~finite).sum()
        self._observe(reward, groups, rung)
        unit, tolerance = self.unit, self.tolerance
        if unit:
            a = group_advantage(reward / unit, groups, "none", tolerance=tolerance)
        else:
            a = group_advantage(reward, groups, std_floor=self._options.std_floor * self._spread, tolerance=tolerance)
        nats = self._spend_budget(a[finite], groups[finite], rung)
        if self._options.advantage_guidance == "auto":
            self._rest.update(log_success(a[finite]), groups[finite], nats=nats)
        metrics = {
            "failed_rewards": 1 - finite.float().mean(), "quiet_share": quiet_share(a, groups),
            "zero_spread_share": (group_std(reward, groups) == 0).float().mean(), "reward_spread": self._spread.to(a),
            "reward_unit": torch.tensor(float(unit)).to(a),
        }  # fmt: skip
        self._monitor.add(metrics, len(a), rung, tolerance, unit)
        return a

    def _spend_budget(self, advantage: Tensor, groups: Tensor, rung: int) -> float:
        """Sets the sharpening lambda from option `kl`, if given, and returns the nats that advantage guidance may cost.

        Tilts add up, and a divergence grows with the square of its tilt: with a quarter of the budget for each, the two
        together spend about all of it.
        """
        if self._kl is None:
            return NATS
        nats = self._kl.nats / 4 if self._guides and self._sharpens else self._kl.nats
        if self._sharpens:
            self._kl.update(advantage, groups, rung, nats)
        self.sharpening = self._kl.tilt(rung)
        return nats

    def sharpening_weights(self, advantage: Tensor, sigma: Tensor | None = None, rungs: Tensor | None = None) -> Tensor:
        """Weights [B] for the fake score's loss.

        Args:
            advantage: advantages [B] of the batch of all ranks.
            sigma: noise levels [B] at which the fake score is trained, as fractions of the schedule; None if unknown.
            rungs: exit rungs [B] of the samples, each of which has a lambda of its own with option `kl`; None for that of the
                last batch.

        Returns:
            Weights [B] of mean 1; with `sharpening_sigma` exactly 1 outside of it, and of mean 1 in expectation.

        Raises:
            ValueError: without `sigma`, if option `sharpening_sigma` was given.
        """
        self._monitor.close()
        tilt = self.sharpening if self._kl is None or rungs is None else self._kl.tilts(rungs)
        weights = sharpening_weights(advantage, self._trust * tilt, self.sharpening_kind)
        if sigma is None and self.needs.fake_score_noise_level:
            raise ValueError("sigma: needed by objective.sharpening_sigma, and this host gives none")
        if (window := self.sharpening_sigma) is None or sigma is None:
            return weights
        return torch.where(inside(sigma, window), weights, 1.0)

    def outcomes(self, advantage: Tensor, draws: Tensor) -> Tensor:
        """The outcome of each sample [B] that the fake score is trained with, see `amd_plugin.maths.advantage_guidance`."""
        self._offered = True
        self._monitor.close()
        return outcomes(advantage, draws)

    @property
    def gamma(self) -> float:
        """Scale of advantage guidance in the next student turn, before `schedule_factor`."""
        if (gamma := self._options.advantage_guidance) != "auto" or self._options.kl == 0:
            return 0.0 if gamma == "auto" else float(gamma)
        rest = min(self._rest.tilt(), REST if self._kl is None else LARGEST)
        return float(automatic_scale(self._contrast.running.sum(0), rest))

    @property
    def _guides(self) -> bool:
        """Whether the scale sets itself, on a host that offers outcomes: only that host can measure a contrast."""
        return self._options.advantage_guidance == "auto" and (self._offered or self._contrast.measured)

    @property
    def _trust(self) -> float:
        """Factor on sharpening and adaptation: the schedule's, times the confidence in rewards where that can be measured.

        Before the first measurement that is 0.
        """
        if not self._guides:
            return self.schedule_factor
        return self.schedule_factor * float(confidence(self._contrast.running.sum(0)))

    @property
    def _climbs(self) -> bool:
        """Whether failing samples follow the gradient of a differentiable reward."""
        return self._options.advantage_gradient != 0

    @property
    def _ratio(self) -> float:
        """Length of that gradient beside matching."""
        ratio = self._options.advantage_gradient
        return RATIO if ratio == "auto" else ratio

    def _finish_turn(self) -> None:
        """Adds the student turn before, if it had a contrast or a gradient, to the running measurements."""
        self._gradient.finish_turn()
        if self._contrast.finish_turn():
            automatic = self._options.advantage_guidance == "auto"
            self._contrast_monitor.update(self._contrast.running.sum(0), self.gamma, automatic=automatic)

    def operator(self) -> Maker:
        """The operator H of Eq. 10, before normalisation."""
        adapt = operators.adapt(self._trust * self.strength, self.side, static=self.static)
        guide = guide_by_advantage(self.schedule_factor * self.gamma)
        maker: Maker = operators.chain(super().operator(), self._measure, adapt, guide)
        return maker

    def direction_metrics(self, direction: Direction) -> dict[str, Tensor]:
        """Metrics of the advantages and their weights, of the implied tilt, and of the zone; 0-dim tensors."""
        signals = direction.signals
        if signals.advantage is None:
            return {}
        self._monitor.close()
        a = signals.advantage.detach().float()
        batch_advantage = a if signals.batch_advantage is None else signals.batch_advantage.detach().float()
        tilt: float | Tensor = self.sharpening
        rungs = signals.rung if signals.batch_rung is None else signals.batch_rung
        if self._kl is not None and rungs is not None and len(rungs) == len(batch_advantage):
            tilt = self._kl.tilts(rungs).float()
        tilt_ratio, divergence = implied_tilt(batch_advantage, self._trust * tilt, self.sharpening_kind)
        metrics = {
            "clip_share": clip_share(batch_advantage),
            "advantage_std": batch_advantage.std(correction=0),
            "tilt_ratio": tilt_ratio,
            "tilt_kl": divergence,
            **({} if self._kl is None else {"sharpening": torch.as_tensor(tilt).mean()}),
            **self._monitor.metrics(),
            **zone_metrics(direction, a <= ZONE),
            **weight_metrics(direction, self.guidance_window),
        }
        if signals.sigma is not None and signals.groups is not None:
            metrics |= self._coherence.metrics()
        if signals.contrast() is not None:
            metrics |= {"advantage_guidance": torch.tensor(self.gamma), **contrast_metrics(self._contrast.running)}
            metrics |= evidence_by_zone(signals, a <= ZONE)
        return metrics

    @property
    def shared_sums(self) -> Sequence[Tensor]:
        """Running sums over this process's samples; a host averages each over processes, in place, after a student turn."""
        measured = ((self._coherence.measured, self._coherence.sums), (self._contrast.has_turn, self._contrast.turn),
                    (self._gradient.has_turn, self._gradient.turn))  # fmt: skip
        return [sums for has_sums, sums in measured if has_sums]

    def state_dict(self) -> dict[str, Any]:
        """JSON-able state: running statistics of rewards and of coherence, and the number of failed rewards."""
        amd_state = {"coherence": self._coherence.state_dict(), "failed": int(self._failed.item())}
        if self.needs.fake_score_outcome:
            amd_state["contrast"] = {
                "running": self._contrast.state_dict(), "rest": self._rest.state_dict(), "offered": self._offered,
            }  # fmt: skip
        if self._climbs:
            amd_state["gradient"] = self._gradient.state_dict()
        if self._kl is not None:
            amd_state["kl"] = self._kl.state_dict()
        return super().state_dict() | amd_state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` gave; raises InputError for the state of another objective."""
        expect_keys(state, self.state_dict(), type(self).__name__)
        if self.needs.reward:
            self.statistics.load_state_dict(state["rewards"])
        self._coherence.load_state_dict(state["coherence"])
        self._failed = torch.tensor(int(state["failed"]))
        if "contrast" in state:
            expect_keys(state["contrast"], ("running", "rest", "offered"), f"{type(self).__name__}'s contrast")
            self._contrast.load_state_dict(state["contrast"]["running"])
            self._rest.load_state_dict(state["contrast"]["rest"])
            self._offered = bool(state["contrast"]["offered"])
        if "gradient" in state:
            self._gradient.load_state_dict(state["gradient"])
        if self._kl is not None:
            self._kl.load_state_dict(state["kl"])

    def _reward_weight(self, in_spreads: Tensor, signals: Signals, direction: Direction) -> float | Tensor:
        """``reward_gradient``, and with `advantage_gradient` ``P(bad | a)`` times what gives the gradient its length."""
        if not self._climbs:
            return super()._reward_weight(in_spreads, signals, direction)
        a = torch.zeros_like(in_spreads) if signals.advantage is None else signals.advantage
        failing = failure_probability(a).to(in_spreads)
        self._gradient.update(failing * in_spreads, signals.x0, direction.total())
        return self.reward_gradient + self._gradient.weight(self._ratio) * failing

    def _measure(self, direction: Direction) -> Direction:
        """The unchanged direction; updates the running sums of its contrast and coherence, as far as signals are known."""
        signals = direction.signals
        self._contrast.update(direction)
        if signals.advantage is not None and signals.sigma is not None and signals.groups is not None:
            self._coherence.update(direction.match, signals.sigma, signals.groups, signals.advantage <= ZONE)
        return direction
