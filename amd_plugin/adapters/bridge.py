"""The code that all adapters share: advantages of student samples, their weights, and the hooks of plugins.

Samples are decoded, scored, and compared within prompts over all ranks. A reward that fails only sets advantages to 0, so every
rank makes the same collective calls, with failed rewards or without.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from amd_plugin.adapters.host_objective import OFFERS as OFFERS
from amd_plugin.adapters.host_objective import adaptive_objective as adaptive_objective
from amd_plugin.adapters.host_objective import require_fit as require_fit
from amd_plugin.adapters.named_rewards import NamedRewards
from amd_plugin.adapters.named_rewards import make_reward as make_reward
from amd_plugin.adapters.ranks import Ranks
from amd_plugin.errors import InputError, RunError
from amd_plugin.hookspecs import Objective
from amd_plugin.plugins import PluginManager
from amd_plugin.randomness import generator
from amd_plugin.rewards.gradient import linearised
from amd_plugin.rewards.protocol import traits
from amd_plugin.rewards.scorer import as_scores

log = logging.getLogger(__name__)


class Scored(NamedTuple):
    """The scores of a turn's samples, for a later turn of the same samples.

    Attributes:
        own: rows of this rank's samples among those of all ranks.
        advantage: advantages of the samples of all ranks; None where no reward is used.
        signal_fields, metrics: attributes of `HostBridge` after the samples were scored.
    """

    own: slice
    advantage: Tensor | None
    signal_fields: dict[str, Tensor]
    metrics: dict[str, Tensor]


class HostBridge:
    """An objective and its reward in somebody else's trainer: advantages, weights, noise levels and schedule factors.

    Args:
        objective: objective that computes advantages and weights.
        reward: function of (media, prompts) to scores [B]; None leaves every advantage at 0.
        decode: function of student samples [B, ...] to media; None scores the samples undecoded.
        process_group: ranks that share one batch, with equally many samples each; None stands for all ranks.
        plugins: manager whose noise-level samplers and strength schedules are applied; None applies none.
        options: options of the objective, passed to `distill_sigma_sampler` as the recipe's section ``objective``.
        seed: seed of the samplers' random generators.

    Attributes:
        objective: objective that computes advantages and weights.
        reward: reward as given.
        metrics: mean reward and share of failed rewards of the last batch, and the mean of each named reward as
            ``reward/NAME``, 0-dim tensors.
        signal_fields: further fields of `Signals` for the last batch: `groups` of the rank's samples, and the advantages of all
            ranks; empty before the first batch.
        ranks: the ranks that share one batch.
        step: number of student updates so far.
        moves_noise_levels: whether a plugin moves noise levels.
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
        self.signal_fields: dict[str, Tensor] = {}
        if reward is not None:
            objective.reward_unit = traits(reward).unit
        if reward is not None and objective.needs.reward_gradient:
            _check_gradients(reward)
        self._decode, self.ranks, self._warned = decode, Ranks(process_group), set[str]()
        self._plugins, self._seed, self.step = plugins, seed, 0
        # pluggy answers in reverse order of registration.
        samplers = [] if plugins is None else plugins.hook.distill_sigma_sampler(options={"objective": dict(options or {})})
        self._samplers = samplers[::-1]
        self._advantage: Tensor | None = None  # of the samples scored last, on all ranks; this rank's rows of it
        self._own = slice(0, 0)
        self.moves_noise_levels = bool(samplers)

    @property
    def uses_reward(self) -> bool:
        """Whether there is a reward, and the objective needs one."""
        return self.reward is not None and self.objective.needs.reward

    @property
    def replaces_student_loss(self) -> bool:
        """Whether the objective's loss takes the place of the host's in the student's turn."""
        return self.uses_reward or self.objective.needs.noise_level

    @property
    def weighs_fake_score(self) -> bool:
        """Whether the fake score's loss has a weight per sample."""
        return self.uses_reward and self.objective.needs.fake_score_weight

    def __call__(self, x0: Tensor, groups: Tensor, prompts: Sequence[str] | None = None) -> tuple[Tensor, Tensor]:
        """`advantages`, and `weights` for all noise levels alike, [B] each."""
        return self.advantages(x0, groups, prompts), self.weights()

    @torch.no_grad()
    def advantages(self, x0: Tensor, groups: Tensor, prompts: Sequence[str] | None = None, *, rung: int | Tensor = 0) -> Tensor:
        """Scores student samples; call it once per turn.

        Args:
            x0: student samples [B, ...].
            groups: integers [B], the same for samples of the same prompt.
            prompts: prompts [B] for the reward; None passes empty ones.
            rung: index of the exit rung of all samples, from 0, the same on every rank; or that of each [B], and then samples
                are compared with those of their own rung. 0 for a host without rungs.

        Returns:
            Advantages [B], zeros where no reward is used.
        """
        self._own = self.ranks.own_rows(len(x0))
        if not self.uses_reward:
            self._advantage = None
            return torch.zeros(len(x0), device=x0.device)
        scores, batch_groups, rungs = self._on_host(self._score(x0.detach(), prompts), groups, rung)
        batch_reward, compared = scores[:, 0], self.objective.needs.group_size > 1
        if compared and len(batch_groups.unique()) == len(batch_groups) and "groups" not in self._warned:
            log.warning(
                "no prompt occurs twice in a batch of %d over all ranks: every advantage is 0. Repeat prompts",
                len(batch_reward),
            )
            self._warned.add("groups")
        if isinstance(rung, Tensor):
            advantage = self._by_rung(batch_reward, batch_groups, rungs)
        else:
            advantage = self.objective.advantage(batch_reward, batch_groups, rung)
        self._advantage = advantage.to(x0.device, non_blocking=True)
        self.signal_fields = {"groups": groups.to(x0.device, non_blocking=True), "batch_advantage": self._advantage}
        self.metrics = _reward_metrics(scores, getattr(self.reward, "names", ()))
        return self._advantage[self._own]

    def _on_host(self, scores: Tensor, groups: Tensor, rung: int | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scores [N, 1 + K], groups [N] and rungs [N] of the samples of all ranks on the CPU, by a single copy.

        All statistics are computed there: a GPU would have to be waited for at each of their branches.
        """
        device, rungs = scores.device, rung if isinstance(rung, Tensor) else torch.zeros((), dtype=torch.long)
        whole = [values.to(device, torch.long, non_blocking=True).expand(len(scores))[:, None] for values in (groups, rungs)]
        # Integers hold the bits of a score, and a prompt's id exactly.
        bits = scores.view(torch.int32).to(torch.long)
        rows = self.ranks.joined(torch.cat((bits, *whole), 1)).cpu()
        return rows[:, :-2].to(torch.int32).view(torch.float32), rows[:, -2].contiguous(), rows[:, -1].contiguous()

    def scored(self) -> Scored:
        """What `advantages` computed last, for `recall`."""
        return Scored(self._own, self._advantage, self.signal_fields, self.metrics)

    def recall(self, scored: Scored, device: torch.device) -> Tensor:
        """The advantages [B] of samples on `device` that an earlier turn scored, in place of `advantages` in this one."""
        self._own, self._advantage, self.signal_fields, self.metrics = scored
        if self._advantage is None:
            return torch.zeros(self._own.stop - self._own.start, device=device)
        return self._advantage[self._own]

    def _by_rung(self, reward: Tensor, groups: Tensor, rungs: Tensor) -> Tensor:
        """Advantages [N] of samples at exit rungs [N], with the statistics of each rung."""
        advantage = torch.zeros_like(reward)
        for rung in rungs.unique().tolist():
            of_rung = rungs == rung
            advantage[of_rung] = self.objective.advantage(reward[of_rung], groups[of_rung], rung)
        return advantage

    def one_rung_per_group(self, values: Tensor, groups: Tensor) -> Tensor:
        """`values` [B] of each sample's rung, with that of the first sample of its group, over all ranks.

        Args:
            values: indices of rungs, or their noise levels.
            groups: [B], the same number for samples of the same prompt.
        """
        batch_values, batch_groups = self.ranks.joined(values), self.ranks.joined(groups.to(values.device))
        first = (groups.to(values.device)[:, None] == batch_groups[None]).int().argmax(1)
        return batch_values[first]

    @torch.no_grad()
    def weights(self, sigma: Tensor | None = None) -> Tensor:
        """Sharpening weights [B] of the samples that `advantages` scored; ones where no reward is used.

        Args:
            sigma: noise levels [B] of the fake score's turn, or [1] for all samples of this rank, as fractions of the schedule;
                None if unknown.
        """
        count = self._own.stop - self._own.start
        if self._advantage is None:
            return torch.ones(count) if sigma is None else torch.ones(count, device=sigma.device)
        levels = None if sigma is None else self.ranks.joined(sigma.detach().float().expand(count).to(self._advantage.device))
        return self.objective.sharpening_weights(self._advantage, levels)[self._own]

    def student_fields(self, x0: Tensor, prompts: Sequence[str] | None = None) -> dict[str, Tensor]:
        """`signal_fields` for the student's turn, and its reward with a gradient where the objective asks for it.

        Args:
            x0: student samples [B, ...] with their graph.
            prompts: prompts [B] for the reward; None passes empty ones.
        """
        follows = self.objective.needs.reward_gradient and self.uses_reward
        return self.signal_fields | ({"reward": self.reward_with_gradient(x0, prompts)} if follows else {})

    def reward_with_gradient(self, x0: Tensor, prompts: Sequence[str] | None = None) -> Tensor:
        """Rewards [B] of `x0` [B, ...] with their gradient with respect to it, for `Signals.reward`; NaN for failed ones.

        The function `decode` of this bridge must be differentiable. Arguments are those of `advantages`.

        Raises:
            RunError: if what it decodes has no graph.
        """
        texts = list(prompts) if prompts is not None else [""] * len(x0)
        score = self.reward.with_gradient if isinstance(self.reward, NamedRewards) else self.reward
        assert score is not None  # noqa: S101

        def scored(samples: Tensor) -> Tensor:
            media = self.media(samples)
            if not media.requires_grad:
                raise RunError("amd.reward_gradient: this host decodes samples without a graph. Set it to 0")
            return score(media, texts)

        try:
            return linearised(scored, x0)
        except RunError:
            raise
        except Exception as error:
            log.warning("no gradient of the reward for these samples: %s: %s", type(error).__name__, error)
            return torch.full((len(x0),), torch.nan, device=x0.device)

    @torch.no_grad()
    def outcomes(self, *key: object) -> Tensor:
        """Outcomes [B] of this rank's samples for the fake score's turn; call it after the samples were scored.

        Args:
            key: keys of the random generator, the same on every rank.
        """
        advantage = self.signal_fields["batch_advantage"]
        random = generator(self._seed, "outcome", *key, device=advantage.device)
        drawn = self.objective.outcomes(advantage, torch.rand(len(advantage), generator=random, device=advantage.device))
        return drawn[self._own]

    def uniform(self, count: int, *key: object) -> Tensor:
        """Uniform random numbers [count, B] in [0, 1) for this rank's samples, drawn on the CPU for those of all ranks."""
        size = (count, len(self.signal_fields["batch_advantage"]))
        return torch.rand(size, generator=generator(self._seed, *key, device=torch.device("cpu")))[:, self._own]

    def start_turn(self, step: int, max_steps: int, metrics: Mapping[str, Tensor] | None = None) -> None:
        """Sets the objective's schedule factor to the product of the plugins' factors, and averages its shared sums over ranks.

        Call it before every turn.

        Args:
            step: number of student updates so far.
            max_steps: number of student updates of the whole run, 0 if unknown.
            metrics: 0-dim tensors of the last student turn; plugins get their mean over ranks, as ``objective/NAME``.
        """
        self.step, self.signal_fields = step, {}
        # Coherence, and the scale of advantage guidance, follow from the last student turn of all ranks.
        for sums in self.objective.shared_sums:
            sums.copy_(self.ranks.joined(sums[None]).mean(0))
        if self._plugins is None or not (hook := self._plugins.hook.distill_strength_schedule).get_hookimpls():
            return
        means: dict[str, float] = {}
        if metrics:
            ranks = self.ranks.joined(stacked(metrics)).view(-1, len(metrics))
            # Named as the reference host names them, so that one plugin reads them in every host.
            names = [f"objective/{name}" for name in metrics]
            means = {name: mean for name, mean in zip(names, ranks.nanmean(0).tolist(), strict=True) if mean == mean}
        self.objective.schedule_factor = math.prod(hook(step=step, max_steps=max_steps, metrics=means))

    @torch.no_grad()
    def move_noise_levels(self, sigma: Tensor, role: str, *key: object) -> Tensor:
        """Noise levels [N] after the plugins' samplers, from the host's draw.

        Args:
            sigma: [N] fractions in [0, 1] of the host's schedule; N is the batch size, or 1 for a host that draws one level for
                all samples of a rank. Plugins then get the samples' mean advantage.
            role: ``student`` or ``fake_score``.
            key: further keys of the samplers' random generators, the same on every rank.

        Raises:
            RunError: if a sampler returns another number of levels, or one outside of [0, 1].
        """
        if not self.moves_noise_levels:
            return sigma
        levels = self.ranks.joined(sigma.float())
        advantage = self.signal_fields.get("batch_advantage")
        advantage = None if advantage is None else advantage.unflatten(0, (len(levels), -1)).mean(1)
        for index, sampler in enumerate(self._samplers):
            draws = generator(self._seed, "sigma", role, *key, index, device=levels.device)
            moved = sampler(levels, role=role, advantage=advantage, step=self.step, generator=draws)
            if moved.shape != levels.shape or not ((moved >= 0) & (moved <= 1)).all():
                raise RunError(f"sigma sampler {sampler!r}: must return {len(levels)} levels in [0, 1], got {moved}")
            levels = moved
        return levels[self.ranks.own_rows(len(sigma))].to(sigma.dtype)

    def media(self, x0: Tensor) -> Tensor:
        """What rewards get of samples `x0` [B, ...]."""
        return x0 if self._decode is None else self._decode(x0)

    def _score(self, x0: Tensor, prompts: Sequence[str] | None) -> Tensor:
        """The reward and its parts by name [B, 1 + K] in fp32; NaN for failed ones."""
        if prompts is None and "prompts" not in self._warned:
            log.info("this batch has no prompts: the reward gets empty ones")
            self._warned.add("prompts")
        names: Sequence[str] = getattr(self.reward, "names", ())
        scores = torch.full((len(x0), 1 + len(names)), torch.nan, dtype=torch.float32, device=x0.device)
        try:
            media = self.media(x0.clone())  # a reward may change what it gets, which may be the samples themselves
            assert self.reward is not None  # noqa: S101
            values = self.reward(media, list(prompts) if prompts is not None else [""] * len(x0))
            scores[:, 0] = as_scores(values, len(x0)).detach().to(scores)
            for column, name in enumerate(names, 1):
                scores[:, column] = self.reward.each[name].to(scores)  # type: ignore[attr-defined]
        except Exception as error:
            log.warning("reward failed, these samples get advantage 0: %s: %s", type(error).__name__, error)
            scores.fill_(torch.nan)
        return scores


def stacked(metrics: Mapping[str, Tensor]) -> Tensor:
    """0-dim tensors as one fp32 tensor, on the device that some of them are on, the CPU if none."""
    values = [value.detach().reshape(()) for value in metrics.values()]
    device = next((value.device for value in values if value.device.type != "cpu"), torch.device("cpu"))
    return torch.stack([value.to(device, torch.float32, non_blocking=True) for value in values])


def prefixed(metrics: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """`metrics` as a host's tracker names them: ``reward/NAME`` as it is, all others after `prefix`."""
    return {name if name.startswith("reward/") else prefix + name: value for name, value in metrics.items()}


def weighted_loss(loss: Callable[..., Tensor], weight: Tensor, *rows: Tensor) -> Tensor:
    """The mean [] of a host's loss with a weight for each sample.

    Args:
        loss: the host's loss, a mean over the batches [n, ...] that it gets.
        weight: weights [B].
        rows: what `loss` gets [B, ...]; one sample at a time, so that each value is that sample's own loss.
    """
    per_sample = torch.stack([loss(*(value[None] for value in sample)) for sample in zip(*rows, strict=True)])
    return (weight.to(per_sample) * per_sample).mean()


def _check_gradients(reward: Callable[..., Any]) -> None:
    """Raises InputError if `reward` has no gradient."""
    if isinstance(reward, NamedRewards):
        reward.check_gradients()
    elif not traits(reward).differentiable:
        message = f"needs a reward with gradients, and {reward!r} has no attribute differentiable = True"
        raise InputError(f"amd.reward_gradient: {message}. Leave it out, or use such a reward")


def _reward_metrics(scores: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    """Means over those samples on which a reward did not fail, of `scores` [B, 1 + K]: the reward, and K of `names`."""
    finite = torch.isfinite(scores)
    means = torch.where(finite, scores, 0.0).sum(0) / finite.sum(0).clamp(min=1)
    parts = {f"reward/{name}": means[column] for column, name in enumerate(names, 1)}
    return {"reward": means[0], "failed_rewards": 1 - finite[:, 0].float().mean(), **parts}


class Steering(HostBridge):
    """`HostBridge` with the names it had before version 0.1.0."""

    begin, levels = HostBridge.start_turn, HostBridge.move_noise_levels

    @property
    def active(self) -> bool:
        """See `uses_reward`."""
        return self.uses_reward

    @property
    def moves(self) -> bool:
        """See `moves_noise_levels`."""
        return self.moves_noise_levels

    @property
    def sensed(self) -> dict[str, Tensor]:
        """See `signal_fields`."""
        return self.signal_fields
