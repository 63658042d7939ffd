"""Adaptive Matching Distillation (2602.07345) as an objective: DMD with a reward as the sensor of where the student fails.

Eq. 12: a, the advantage of each sample within its prompt. Eq. 10 and 13: the student moves along
``beta (d_real_cond - d_fake) + alpha (w - 1) d_ca``, see `operators.adapt`. Section 3.3: the fake score learns from
``mean of weight(a) |prediction - target|^2``, see `sharpening`.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from amd_plugin.hookspecs import Needs
from amd_plugin.maths import operators
from amd_plugin.maths.advantage import group_advantage, group_std, quiet_share
from amd_plugin.maths.coherence import Coherence
from amd_plugin.maths.diagnostics import clip_share, weight_metrics, zone_metrics
from amd_plugin.maths.operators import Maker, Window, inside
from amd_plugin.maths.sharpening import implied_tilt, sharpening_weights
from amd_plugin.maths.signals import Direction
from amd_plugin.objectives.amd_options import (
    AMDOptions,
    check_amd,
    resolved_sharpening_sigma,
    resolved_side,
    resolved_strength,
    resolved_tolerance,
    resolved_unit,
)
from amd_plugin.objectives.dmd import DMDObjective, expect_keys
from amd_plugin.objectives.reward_monitor import RewardMonitor
from amd_plugin.options import made, takes

log = logging.getLogger(__name__)

ZONE = -0.5  # a sample with an advantage at or below this counts as lying in a Forbidden Zone


class AMDObjective(DMDObjective):
    """Adaptive Matching Distillation (2602.07345); drops in for `DMDObjective`.

    With ``strength=0`` and ``sharpening=0`` no reward is used, and it equals `DMDObjective` to the bit.

    Args:
        guidance_scale: as for `DMDObjective`.
        options: the further options of `AMDOptions`, by name.

    Attributes:
        strength: adaptation strength s.
        side: samples that adaptation weighs.
        sharpening, sharpening_kind: sharpening lambda, and the form of its weights.

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
        if self.side == "both" and guidance_scale > 1 and self.strength > 0:
            most = (1 + self.strength) / (1 - self.strength)
            log.warning(
                "objective.side 'both' at guidance scale %g multiplies guidance by up to %g for the best samples, which loses "
                "modes. Choose 'negative' or 'auto'", guidance_scale, most,
            )  # fmt: skip
        self._coherence, self._monitor = Coherence(), RewardMonitor()
        self._failed: Tensor = torch.zeros((), dtype=torch.long)
        self._reward_metrics: dict[str, Tensor] = {}

    @property
    def needs(self) -> Needs:
        """What it asks of a host."""
        share = self._options.memory_share
        compares, plain = self.strength > 0 or self.sharpening > 0 or share > 0, super().needs
        return replace(
            plain, reward=plain.reward or compares, replay=share, fake_score_weight=self.sharpening > 0,
            group_size=2 if compares else plain.group_size,
            recommended_group_size=4 if compares else plain.recommended_group_size,
            fake_score_noise_level=isinstance(self._options.sharpening_sigma, tuple),
        )  # fmt: skip

    @property
    def reward_levers(self) -> Mapping[str, float]:
        """Options that set how hard the reward is followed, with their values."""
        return {"sharpening": self.sharpening, "strength": self.strength, **super().reward_levers}

    @property
    def unit(self) -> float:
        """Divisor of rewards; 0 stands for their own spread."""
        return resolved_unit(self._options, self.reward_unit)

    @property
    def tolerance(self) -> float:
        """Reward difference that counts as none, in units, or in spreads where there is no unit."""
        return resolved_tolerance(self._options, self.unit)

    @property
    def sharpening_sigma(self) -> Window | None:
        """Noise levels at which the fake score's loss is weighted; None stands for all."""
        return resolved_sharpening_sigma(self._options, self.unit)

    def advantage(self, reward: Tensor, groups: Tensor, rung: int = 0) -> Tensor:
        """Advantage [B] of the joined batch, Eq. 12, and an update of the running statistics of rewards.

        Args:
            reward: [B], higher is better; NaN or infinite stands for a failed one and gets 0.
            groups: [B], the same number for samples of the same prompt.
            rung: the student's exit rung, from 0; each has statistics of its own.
        """
        reward = reward.detach().float()
        finite = torch.isfinite(reward)
        self._failed = self._failed.to(reward.device) + (~finite).sum()
        self._observe(reward, groups, rung)
        unit, tolerance = self.unit, self.tolerance
        if unit:
            a = group_advantage(reward / unit, groups, "none", tolerance=tolerance)
        else:
            a = group_advantage(reward, groups, std_floor=self._options.std_floor * self._spread, tolerance=tolerance)
        equal, quiet = (group_std(reward, groups) == 0).float().mean(), quiet_share(a, groups)
        self._reward_metrics = {
            "failed_rewards": 1 - finite.float().mean(), "quiet_share": quiet, "zero_spread_share": equal,
        }  # fmt: skip
        self._monitor.update(equal, quiet, tolerance, unit)
        return a

    def sharpening_weights(self, advantage: Tensor, sigma: Tensor | None = None) -> Tensor:
        """Weights [B] for the fake score's loss; give it the advantages of the joined batch.

        Args:
            advantage: [B].
            sigma: noise levels [B] at which the fake score is trained, as fractions of the schedule.

        Returns:
            [B], mean 1; with `sharpening_sigma` exactly 1 outside of it, and mean 1 in expectation.

        Raises:
            ValueError: without `sigma`, where `sharpening_sigma` was given.
        """
        weights = sharpening_weights(advantage, self.schedule_factor * self.sharpening, self.sharpening_kind)
        if sigma is None and self.needs.fake_score_noise_level:
            raise ValueError("sigma: needed by objective.sharpening_sigma, and this host gives none")
        if (window := self.sharpening_sigma) is None or sigma is None:
            return weights
        return torch.where(inside(sigma, window), weights, 1.0)

    def operator(self) -> Maker:
        """Eq. 10."""
        adapt = operators.adapt(self.schedule_factor * self.strength, self.side, static=self.static)
        maker: Maker = operators.chain(super().operator(), self._measured, adapt)
        return maker

    def direction_metrics(self, direction: Direction) -> dict[str, Tensor]:
        """Advantages, the weights they make, what those imply, and how many samples sit in the zone."""
        signals = direction.signals
        if signals.advantage is None:
            return {}
        a = signals.advantage.detach().float()
        whole = a if signals.batch_advantage is None else signals.batch_advantage.detach().float()
        ratio, divergence = implied_tilt(whole, self.schedule_factor * self.sharpening, self.sharpening_kind)
        metrics = {
            "clip_share": clip_share(whole),
            "advantage_std": whole.std(correction=0),
            "reward_spread": self._spread.clone(),
            "reward_unit": torch.tensor(float(self.unit), device=a.device),
            "tilt_ratio": ratio,
            "tilt_kl": divergence,
            **self._reward_metrics,
            **zone_metrics(direction, a <= ZONE),
            **weight_metrics(direction, self.guidance_window),
        }
        if signals.sigma is not None and signals.groups is not None:
            metrics |= self._coherence.metrics()
        return metrics

    @property
    def shared_sums(self) -> Sequence[Tensor]:
        """Running sums over this process's samples; several average each over all, in place, after every student turn."""
        return [self._coherence.sums] if self._coherence.measured else []

    def state_dict(self) -> dict[str, Any]:
        """JSON-able: running statistics of rewards and of coherence, and rewards that failed so far."""
        own = {"coherence": self._coherence.state_dict(), "failed": int(self._failed.item())}
        return super().state_dict() | own

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what `state_dict` gave; raises InputError for the state of another objective."""
        expect_keys(state, self.state_dict(), type(self).__name__)
        if self.needs.reward:
            self.statistics.load_state_dict(state["rewards"])
        self._coherence.load_state_dict(state["coherence"])
        self._failed = torch.tensor(int(state["failed"]))

    def _measured(self, direction: Direction) -> Direction:
        """The direction as it is, its agreement with itself added to the running sums where prompts and levels are known."""
        signals = direction.signals
        if signals.advantage is not None and signals.sigma is not None and signals.groups is not None:
            self._coherence.update(direction.match, signals.sigma, signals.groups, signals.advantage <= ZONE)
        return direction
