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

from amd_plugin.adapters.host_metrics import stacked
from amd_plugin.adapters.ranks import Ranks
from amd_plugin.adapters.sample_scores import SampleScores, reward_metrics
from amd_plugin.contract import gradient_option, moved_levels
from amd_plugin.hookspecs import Objective
from amd_plugin.maths.losses import LossOutput
from amd_plugin.maths.signals import Signals
from amd_plugin.moved import names_of
from amd_plugin.objectives.gradient_statistics import RATIO
from amd_plugin.plugins import PluginManager
from amd_plugin.randomness import generator
from amd_plugin.rewards.protocol import traits

log = logging.getLogger(__name__)
__getattr__ = names_of(__name__)


class Scored(NamedTuple):
    """The scores of a turn's samples, for a later turn of the same samples.

    Attributes:
        own: rows of this rank's samples among those of all ranks.
        advantage: advantages of the samples of all ranks; None where no reward is used.
        rungs: exit rungs of the samples of all ranks.
        signal_fields, metrics: attributes of `HostBridge` after the samples were scored.
    """

    own: slice
    advantage: Tensor | None
    rungs: Tensor
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
        seed: seed of the run, for AMD's own draws: of outcomes, of remembered failures, and of the plugins' samplers.

    Attributes:
        objective: objective that computes advantages and weights.
        reward: reward as given.
        plugins: manager as given.
        seed: seed as given; a host that knows its own later sets it before the first turn.
        metrics: mean reward and share of failed rewards of the last batch, and the mean of each named reward as
            ``reward/NAME``, 0-dim tensors.
        signal_fields: further fields of `Signals` for the last batch: `groups` of the rank's samples, the advantages of all
            ranks, and the rungs of both where samples have rungs of their own; empty before the first batch.
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
        self._decode, self._scores = decode, None if reward is None else SampleScores(reward, self.media)
        if self._scores is not None:
            objective.reward_unit = traits(reward).unit
            if objective.needs.reward_gradient is True:
                self._scores.check_gradients(f"amd.{gradient_option(objective)}")
            elif objective.needs.reward_gradient:
                log.warning("amd.advantage_gradient: auto is 0 in this host; give a length, such as %g", RATIO)
        self.ranks, self._said_unrepeated = Ranks(process_group), False
        self.plugins, self.seed, self.step = plugins, seed, 0
        # pluggy answers in reverse order of registration.
        samplers = [] if plugins is None else plugins.hook.distill_sigma_sampler(options={"objective": dict(options or {})})
        self._samplers = samplers[::-1]
        if plugins is not None and plugins.hook.distill_advantage_schedule.get_hookimpls():
            log.warning("distill_advantage_schedule of a plugin has no effect here: only the reference host calls it")
        self._advantage: Tensor | None = None  # of the samples scored last, on all ranks; this rank's rows of it
        self._own, self._rungs = slice(0, 0), torch.zeros(0, dtype=torch.long)
        self.moves_noise_levels = bool(samplers)
        self._scheduled: bool | None = None  # whether a plugin of any rank has a schedule; None before the first turn

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
        """Whether the fake score's loss has a weight per sample, by sharpening or for remembered failures beside outcomes."""
        needs = self.objective.needs
        return self.uses_reward and (needs.fake_score_weight or bool(needs.replay and needs.fake_score_outcome))

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
        if self._scores is None or not self.uses_reward:
            self._advantage = None
            return torch.zeros(len(x0), device=x0.device)
        scores, batch_groups, self._rungs = self._on_host(self._scores(x0.detach(), prompts), groups, rung)
        batch_reward, compared = scores[:, 0], self.objective.needs.group_size > 1
        if compared and len(batch_groups.unique()) == len(batch_groups) and not self._said_unrepeated:
            log.warning(
                "no prompt occurs twice in a batch of %d over all ranks: every advantage is 0. Repeat prompts, "
                "by group_size where the adapter has it",
                len(batch_reward),
            )
            self._said_unrepeated = True
        if isinstance(rung, Tensor):
            advantage = self._by_rung(batch_reward, batch_groups)
        else:
            advantage = self.objective.advantage(batch_reward, batch_groups, rung)
        self._advantage = advantage.to(x0.device, non_blocking=True)
        self.signal_fields = {"groups": groups.to(x0.device, non_blocking=True), "batch_advantage": self._advantage}
        if isinstance(rung, Tensor):
            self.signal_fields |= {"rung": self._rungs[self._own], "batch_rung": self._rungs}
        self.metrics = reward_metrics(scores, self._scores.names)
        return self._advantage[self._own]

    def _on_host(self, scores: Tensor, groups: Tensor, rung: int | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scores [N, 1 + K], groups [N] and rungs [N] of the samples of all ranks on the CPU, by a single copy.

        All statistics are computed there: a GPU would have to be waited for at each of their branches.
        """
        device, rungs = scores.device, torch.as_tensor(rung)
        whole = [values.to(device, torch.long, non_blocking=True).expand(len(scores))[:, None] for values in (groups, rungs)]
        # Integers hold the bits of a score, and a prompt's id exactly.
        bits = scores.view(torch.int32).to(torch.long)
        rows = self.ranks.joined(torch.cat((bits, *whole), 1)).cpu()
        return rows[:, :-2].to(torch.int32).view(torch.float32), rows[:, -2].contiguous(), rows[:, -1].contiguous()

    def scored(self) -> Scored:
        """What `advantages` computed last, for `recall`."""
        return Scored(self._own, self._advantage, self._rungs, self.signal_fields, self.metrics)

    def recall(self, scored: Scored, device: torch.device) -> Tensor:
        """The advantages [B] of samples on `device` that an earlier turn scored, in place of `advantages` in this one."""
        self._own, self._advantage, self._rungs, self.signal_fields, self.metrics = scored
        if self._advantage is None:
            return torch.zeros(self._own.stop - self._own.start, device=device)
        return self._advantage[self._own]

    def _by_rung(self, reward: Tensor, groups: Tensor) -> Tensor:
        """Advantages [N] of samples with the statistics of each one's exit rung."""
        advantage = torch.zeros_like(reward)
        for rung in self._rungs.unique().tolist():
            of_rung = self._rungs == rung
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
        own_tilts = {"rungs": self._rungs} if self.objective.needs.fake_score_rung else {}
        return self.objective.sharpening_weights(self._advantage, levels, **own_tilts)[self._own]

    def student_fields(self, x0: Tensor, prompts: Sequence[str] | None = None) -> dict[str, Tensor]:
        """`signal_fields` for the student's turn, and its reward with a gradient and rungs where the objective asks for it.

        Args:
            x0: student samples [B, ...] with their graph; then `decode` must be differentiable.
            prompts: prompts [B] for the reward; None passes empty ones.

        Raises:
            RunError: if the objective asks for a gradient, and `decode` has none.
        """
        if self._scores is None or not (self.objective.needs.reward_gradient is True and self.uses_reward):
            return dict(self.signal_fields)
        # A turn that was recalled is of another rung than the one scored last, by whose spread its reward must not be divided.
        rungs = {"rung": self._rungs[self._own], "batch_rung": self._rungs}
        return self.signal_fields | rungs | {"reward": self._scores.with_gradient(x0, prompts)}

    @torch.no_grad()
    def outcomes(self, *key: object) -> Tensor:
        """Outcomes [B] of this rank's samples for the fake score's turn; call it after the samples were scored.

        Args:
            key: keys of the random generator, the same on every rank.
        """
        advantage = self.signal_fields["batch_advantage"]
        random = generator(self.seed, "outcome", *key, device=advantage.device)
        drawn = self.objective.outcomes(advantage, torch.rand(len(advantage), generator=random, device=advantage.device))
        return drawn[self._own]

    def uniform(self, count: int, *key: object) -> Tensor:
        """Uniform random numbers [count, B] in [0, 1) for this rank's samples, drawn on the CPU for those of all ranks."""
        size = (count, len(self.signal_fields["batch_advantage"]))
        return torch.rand(size, generator=generator(self.seed, *key, device=torch.device("cpu")))[:, self._own]

    def student_loss(self, signals: Signals) -> LossOutput:
        """The objective's loss of the student's turn; averages its shared sums over ranks. Call it on every rank equally often.

        What reads the sums next, a turn of the fake score or a checkpoint of one rank, then finds those of all ranks.
        """
        output = self.objective.student_loss(signals)
        self._share_sums()
        return output

    def start_turn(self, step: int, max_steps: int, metrics: Mapping[str, Tensor] | None = None) -> None:
        """Sets the objective's schedule factor to the product of the plugins' factors, and averages its shared sums over ranks.

        Call it before every turn, on every rank. The factor is that of the first rank, and a plugin that fails on one is set
        aside on all.

        Args:
            step: number of student updates so far.
            max_steps: number of student updates of the whole run, 0 if unknown.
            metrics: 0-dim tensors of the last student turn; plugins get their mean over ranks, as ``objective/NAME``.
        """
        self.step, self.signal_fields = step, {}
        self._share_sums()
        if self.plugins is None:
            return
        hook = self.plugins.hook.distill_strength_schedule
        if self._scheduled is None:
            # A rank whose plugin could not be loaded has no schedule, and takes part in what the others gather all the same.
            self._scheduled = any(self.ranks.objects(bool(hook.get_hookimpls())))
        if not self._scheduled:
            return
        means: dict[str, float] = {}
        if metrics:
            ranks = self.ranks.joined(stacked(metrics)).view(-1, len(metrics))
            # Named as the reference host names them, so that one plugin reads them in every host.
            names = [f"objective/{name}" for name in metrics]
            means = {name: mean for name, mean in zip(names, ranks.nanmean(0).tolist(), strict=True) if mean == mean}
        factor = math.prod(hook(step=step, max_steps=max_steps, metrics=means))
        self.objective.schedule_factor = self.plugins.agree(factor, self.ranks.objects)

    @torch.no_grad()
    def _share_sums(self) -> None:
        """Averages what coherence and the scale of advantage guidance follow from; once more changes nothing."""
        for sums in self.objective.shared_sums:
            sums.copy_(self.ranks.joined(sums[None]).mean(0))

    @torch.no_grad()
    def move_noise_levels(self, sigma: Tensor, role: str, *key: object) -> Tensor:
        """Noise levels [N] after the plugins' samplers, from the host's draw.

        Args:
            sigma: [N] fractions in [0, 1] of the host's schedule; N is the batch size, or 1 for a host that draws one level for
                all samples of a rank. Plugins then get the samples' mean advantage.
            role: ``student`` or ``fake_score``.
            key: further keys of the samplers' random generators, the same on every rank.

        Raises:
            RunError: for a sampler that fails, or returns something else than levels.
        """
        if not self.moves_noise_levels:
            return sigma
        levels = self.ranks.joined(sigma.float())
        advantage = self.signal_fields.get("batch_advantage")
        advantage = None if advantage is None else advantage.unflatten(0, (len(levels), -1)).mean(1)
        draws = lambda index: generator(self.seed, "sigma", role, *key, index, device=levels.device)  # noqa: E731
        levels = moved_levels(levels, self._samplers, draws, role=role, advantage=advantage, step=self.step)
        return levels[self.ranks.own_rows(len(sigma))].to(sigma.dtype)

    def media(self, x0: Tensor) -> Tensor:
        """What rewards get of samples `x0` [B, ...]."""
        return x0 if self._decode is None else self._decode(x0)
