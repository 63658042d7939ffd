"""What adapters share: from student samples to advantages (decode, score, compare within prompts over all ranks), and what
plugins say about noise levels and strength.

A reward that fails costs its samples their advantage and nothing else, so every rank makes the same collective calls
whatever its rewards did.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from pydantic import ValidationError
from torch import Tensor

from amd_plugin.config import RewardConfig, options_model, wrong_values
from amd_plugin.errors import InputError, OptionError, RunError
from amd_plugin.hookspecs import Objective
from amd_plugin.objectives.amd import AMDObjective
from amd_plugin.plugins import PluginManager, get_plugin_manager
from amd_plugin.randomness import generator
from amd_plugin.rewards.protocol import traits
from amd_plugin.rewards.reward_set import RewardSet

log = logging.getLogger(__name__)

# What a host decides by itself: its guidance, its draws of noise levels, its discriminator.
HOSTS_OWN = ("guidance_scale", "guidance_sigma", "match_sigma", "gan_weight", "gan_r1", "gan_r1_sigma")
# What asks more of a host than these give: noise levels at both turns, a memory, rewards with gradients.
REFERENCE_HOST = (
    "guidance_window", "sharpening_sigma", "memory_share", "memory_size", "reward_gradient", "coherence_gate",
)  # fmt: skip


def adaptive_objective(guidance_scale: float, options: Mapping[str, Any]) -> AMDObjective:
    """`AMDObjective` with `options`, for a host that keeps guidance and discriminator to itself.

    Raises:
        InputError: for an option that is unknown, out of range, or the host's own.
    """
    model = options_model(AMDObjective, ignore=(*HOSTS_OWN, *REFERENCE_HOST))
    known = model.model_fields
    for option in options:
        if option not in known:
            why = {"is set in the host's own configuration": HOSTS_OWN, "needs amd-plugin's own host": REFERENCE_HOST}
            said = next((text for text, options in why.items() if option in options), "is not an option of AMD")
            raise InputError(f"amd.{option}: {said}. There are: {', '.join(sorted(known))}")
    try:
        # As JSON, whose lists may be tuples, while numbers, words and booleans still do not turn into each other.
        checked = model.model_validate_json(json.dumps(dict(options), default=repr))
        return AMDObjective(guidance_scale, **{option: getattr(checked, option) for option in options})
    except ValidationError as error:
        place, what = next(iter(wrong_values(error, options).items()))
        raise InputError(f"amd.{'.'.join(map(str, place))}: {what}") from error
    except OptionError as error:
        raise InputError(f"amd.{error}") from error


def refuse_what_is_missing(objective: Objective, guidance_scale: float) -> None:
    """Raises InputError where `objective` asks for more than samples, predictions and one noise level for both terms.

    Args:
        objective: made by somebody else.
        guidance_scale: the host's.
    """
    if objective.guidance_scale != guidance_scale:
        what = f"must have the guidance scale of the host's configuration, {guidance_scale:g}, got {objective.guidance_scale:g}"
        raise InputError(f"objective: {what}")
    for option in ("guidance_sigma", "match_sigma", "adversarial", "reward_gradient", "memory_share", "coherence_gate"):
        if asked := getattr(objective, option, None):
            raise InputError(f"objective.{option}: is not to be had in this host, got {asked!r}")
    try:
        objective.sharpening_weights(torch.zeros(2))
    except (ValueError, TypeError) as error:
        what = "its weights ask for noise levels, which this host does not give"
        raise InputError(f"objective.sharpening_sigma: {what}: {error}") from error


def make_reward(spec: Any, plugins: PluginManager | None = None) -> Callable[..., Any] | None:
    """A reward from what a user wrote: a callable, ``{name, weight, options...}``, a list of such, or None.

    Raises:
        InputError: for anything else, and for a reward that is unknown or cannot be built.
    """
    if spec is None or callable(spec):
        return spec  # type: ignore[no-any-return]
    entries = [spec] if isinstance(spec, Mapping | str) else spec
    if not isinstance(entries, Sequence) or not entries:
        raise InputError(f"reward: must be a name with options, a list of these, or a callable, got {spec!r}")
    configs = []
    for entry in entries:
        entry = {"name": entry} if isinstance(entry, str) else entry
        if not isinstance(entry, Mapping) or entry.get("on_error", "neutral") != "neutral":
            raise InputError(f"reward: must be a mapping with a name, without on_error (always neutral here), got {entry!r}")
        try:
            configs.append(RewardConfig(**{**entry, "on_error": "neutral"}))
        except ValidationError as error:
            first = error.errors()[0]
            raise InputError(f"reward.{'.'.join(map(str, first['loc']))}: {first['msg']}, got {first['input']!r}") from error
    rewards = RewardSet(configs, plugins or get_plugin_manager(), None)
    return _Total(rewards)


class _Total:
    """The weighted sum of rewards, as one reward."""

    def __init__(self, rewards: RewardSet):
        self._rewards, self.unit = rewards, rewards.unit

    def __call__(self, media: Tensor, prompts: Sequence[str]) -> Tensor:
        return self._rewards(media, prompts).total


class Steering:
    """An objective with a sensor, in a host that is not ours.

    Args:
        objective: gives advantages and weights.
        reward: called with (media, prompts); None leaves every advantage at 0.
        decode: makes media of student samples [B, ...]; None scores the samples as they are.
        process_group: ranks whose batches count as one, with as many samples each; None is all of them.
        plugins: whose noise levels and strength schedules are followed; None is nobody's.
        options: what `distill_sigma_sampler` is told about the run.
        seed: of the samplers' own randomness.

    Attributes:
        metrics: reward and failures of the last batch, 0-dim tensors.
        sensed: what `Signals` is told about the last batch beside the rank's advantages: its `groups`, and the
            `batch_advantage` of all ranks; empty before any.
        step: student updates so far, as `begin` was told.
        moves: whether a plugin moves noise levels.
    """

    def __init__(
        self,
        objective: Objective,
        reward: Callable[..., Any] | None = None,
        decode: Callable[[Tensor], Tensor] | None = None,
        process_group: Any = None,
        *,
        plugins: PluginManager | None = None,
        options: Mapping[str, Any] | None = None,
        seed: int = 0,
    ):
        self.objective, self.reward, self.metrics = objective, reward, dict[str, Tensor]()
        self.sensed: dict[str, Tensor] = {}
        if reward is not None and hasattr(objective, "reward_unit"):
            objective.reward_unit = traits(reward).unit
        self._decode, self._group, self._told, self._alone = decode, process_group, False, False
        self._plugins, self._seed, self.step = plugins, seed, 0
        # pluggy answers in reverse order of registration.
        found = [] if plugins is None else plugins.hook.distill_sigma_sampler(options={"objective": dict(options or {})})
        self._samplers = found[::-1]
        self.moves = bool(found)

    @property
    def active(self) -> bool:
        """Whether there is anything to steer by."""
        return self.reward is not None and self.objective.needs_reward

    @torch.no_grad()
    def __call__(self, x0: Tensor, groups: Tensor, prompts: Sequence[str] | None = None) -> tuple[Tensor, Tensor]:
        """Advantage [B] of student samples `x0` [B, ...] of `groups` [B], and their sharpening weights [B]."""
        if not self.active:
            return torch.zeros(len(x0), device=x0.device), torch.ones(len(x0), device=x0.device)
        rewards = self._score(x0.detach(), prompts)
        joined, mine = self._join(rewards), slice(self._rank() * len(x0), (self._rank() + 1) * len(x0))
        members = self._join(groups.to(x0.device))
        if self.objective.min_group_size > 1 and len(members.unique()) == len(members) and not self._alone:
            log.warning(
                "no prompt occurs twice in a batch of %d over all ranks: every advantage is 0. Repeat prompts", len(joined)
            )
            self._alone = True
        advantage = self.objective.advantage(joined, members)
        self.sensed = {"groups": members[mine], "batch_advantage": advantage}
        finite = torch.isfinite(joined)
        count = finite.sum().clamp(min=1)
        self.metrics = {
            "reward": torch.where(finite, joined, 0.0).sum() / count,
            "failed_rewards": 1 - finite.float().mean(),
        }
        return advantage[mine], self.objective.sharpening_weights(advantage)[mine]

    def begin(self, step: int, max_steps: int, metrics: Mapping[str, Tensor] | None = None) -> None:
        """To be called before every turn: has plugins set the objective's strength.

        Args:
            step: student updates so far.
            max_steps: student updates in all, 0 where nobody knows.
            metrics: 0-dim tensors of the last student turn; plugins are told their mean over ranks, as ``objective/NAME``.
        """
        self.step, self.sensed = step, {}
        if self._plugins is None or not (hook := self._plugins.hook.distill_strength_schedule).get_hookimpls():
            return
        means: dict[str, float] = {}
        if metrics:
            own = torch.stack([value.detach().float().reshape(()).cpu() for value in metrics.values()])
            ranks = self._join(own.to(next(iter(metrics.values())).device)).view(-1, len(own))
            # Named as the reference host names them, so that one plugin reads them in every host.
            names = [f"objective/{name}" for name in metrics]
            means = {name: mean for name, mean in zip(names, ranks.nanmean(0).tolist(), strict=True) if mean == mean}
        self.objective.strength_scale = math.prod(hook(step=step, max_steps=max_steps, metrics=means))

    @torch.no_grad()
    def levels(self, sigma: Tensor, role: str, *key: object) -> Tensor:
        """Noise levels [N] that plugins make of the host's draw.

        Args:
            sigma: [N] as fractions in [0, 1] of the host's schedule; N is the batch size, or 1 where the host has one level
                for all of a rank's samples, and plugins are told the samples' mean advantage.
            role: ``student`` or ``fake_score``.
            key: what else the samplers' randomness depends on, the same on every rank.

        Raises:
            RunError: if a sampler returns anything else than as many levels in [0, 1].
        """
        if not self.moves:
            return sigma
        joined, first = self._join(sigma.float()), self._rank() * len(sigma)
        everyone = self.sensed.get("batch_advantage")
        advantage = None if everyone is None else everyone.unflatten(0, (len(joined), -1)).mean(1)
        for index, sampler in enumerate(self._samplers):
            draws = generator(self._seed, "sigma", role, *key, index, device=joined.device)
            moved = sampler(joined, role=role, advantage=advantage, step=self.step, generator=draws)
            if moved.shape != joined.shape or not ((moved >= 0) & (moved <= 1)).all():
                raise RunError(f"sigma sampler {sampler!r}: must return {len(joined)} levels in [0, 1], got {moved}")
            joined = moved
        return joined[first : first + len(sigma)].to(sigma.dtype)

    def _score(self, x0: Tensor, prompts: Sequence[str] | None) -> Tensor:
        """[B] fp32; NaN where there is none."""
        if prompts is None and not self._told:
            log.info("the host knows no prompts here; the reward is given empty ones")
            self._told = True
        try:
            media = x0 if self._decode is None else self._decode(x0)
            assert self.reward is not None  # noqa: S101
            values = self.reward(media, list(prompts) if prompts is not None else [""] * len(x0))
            if not isinstance(values, Tensor):
                values = torch.tensor([torch.nan if value is None else float(value) for value in values])
            if values.shape != x0.shape[:1]:
                raise ValueError(f"must return one value per sample, shape ({len(x0)},), got {tuple(values.shape)}")
            return values.detach().to(x0.device, torch.float32)
        except Exception as error:
            log.warning("reward failed, these samples get advantage 0: %s: %s", type(error).__name__, error)
            return torch.full((len(x0),), torch.nan, device=x0.device)

    def _rank(self) -> int:
        return dist.get_rank(self._group) if dist.is_available() and dist.is_initialized() else 0

    def _join(self, values: Tensor) -> Tensor:
        """[B of all ranks] from [B], in order of rank."""
        if not (dist.is_available() and dist.is_initialized()):
            return values
        parts = [torch.empty_like(values) for _ in range(dist.get_world_size(self._group))]
        dist.all_gather(parts, values.contiguous(), group=self._group)
        return torch.cat(parts)
