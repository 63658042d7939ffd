"""One cycle of distribution matching distillation: some updates of the fake score, then one of the student.

    fake-score turn:    x0 = rollout (no grad) -> rewards -> weights -> denoising loss on x0
    discriminator turn: the same x0, and real samples (objectives with an adversarial branch)
    student turn:       x0 = rollout (grad on the exit rung) -> rewards -> advantages
                        x_t = re-noised x0 -> teacher, fake score -> Signals -> objective -> loss on x0

What happens to signals, rewards and weights is the objective's business; nothing here knows which one it is.
"""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from amd_plugin.errors import InputError
from amd_plugin.host.training.adversary import Adversary
from amd_plugin.host.training.batch import Batch
from amd_plugin.host.training.failure_memory import FailureMemory
from amd_plugin.host.training.noise_levels import NoiseLevelSampler
from amd_plugin.host.training.real_samples import RealSamples
from amd_plugin.host.training.roles import build_roles
from amd_plugin.host.training.scoring import Scoring, ScoringJob
from amd_plugin.maths.coherence import by_band
from amd_plugin.maths.signals import Signals
from amd_plugin.models.backbone import load_backbone
from amd_plugin.models.conditions import prompts_of
from amd_plugin.models.family import Caller, Condition, pair
from amd_plugin.plugins import PluginManager
from amd_plugin.randomness import generator
from amd_plugin.recipe.loading import Recipe
from amd_plugin.rewards.reward_set import RewardSet
from amd_plugin.schedule import Ladder, NoiseSchedule, floors, sample

log = logging.getLogger(__name__)

Metrics = dict[str, Tensor]


class TurnInputs(NamedTuple):
    """How a turn begins: what it asks for, this process's samples, and what the rewards are asked about them."""

    batch: Batch
    rollouts: list[Tensor]
    asked: ScoringJob | None


class Trainer:
    """Roles, those who learn, and the turns they take.

    Attributes:
        step: student updates done.
        student, fake_score, teacher: the roles; `ema` averages the student.
        learners: optimizers and updates, by the name of what they train.
        backbone: the model everything starts from.
        student_is_sharded: all processes have to call it equally often.
        has_shares: each process keeps a share of trained weights, so that all have to save and load them together.
        ladder: rungs of the few-step scheduler that is trained for and exported.
        floors: by rung, the lowest fraction of the schedule that its samples are re-noised to.
        scoring: what rewards say and do when they fail; None where the objective listens to none.
    """

    def __init__(self, recipe: Recipe, plugins: PluginManager, accelerator: Accelerator):
        config = recipe.config
        self.recipe, self.plugins, self.accelerator = recipe, plugins, accelerator
        self.train = config.train
        self.step = 0
        if self.train.batch_size % (accelerator.num_processes * self.train.accumulation):
            raise InputError(
                f"train.batch_size: must be a multiple of processes x accumulation = {accelerator.num_processes} x "
                f"{self.train.accumulation}, got {self.train.batch_size}"
            )
        self.task = recipe.task
        self.objective = recipe.new_objective()
        if self.train.group_size < (enough := self.objective.needs.recommended_group_size):
            log.warning(
                "train.group_size: with fewer than %d samples per prompt, advantages are little more than signs; got %d",
                enough, self.train.group_size,
            )  # fmt: skip
        sharded = config.distributed.teacher != "none"
        self.backbone = load_backbone(config.model, self.task, self.train.seed, plugins.families(), sharded=sharded)
        self.backbone.move_autoencoders(accelerator.device)
        self.scoring: Scoring | None = None
        if self.objective.needs.reward:
            self.scoring = Scoring(recipe, plugins, self.backbone, accelerator)
            self.objective.reward_unit = self.scoring.unit
            if self.objective.needs.reward_gradient:
                self.scoring.rewards.check_gradients()
        share = self.objective.needs.replay
        self.memory = FailureMemory(share) if share else None
        self._ahead: dict[tuple[str, int], TurnInputs] = {}
        self._reused: tuple[Batch, list[Tensor], Tensor | None] | None = None

        self.schedule = NoiseSchedule(self.backbone.scheduler, self.backbone.shift)
        self.ladder = Ladder(self.backbone.scheduler, config.model.student_steps, accelerator.device)
        windows = {"train.sigma": self.train.sigma, "objective.match_sigma": self.objective.needs.match_range}
        self.floors = floors(self.schedule, self.ladder, windows) if self.train.sub_interval else [0.0] * len(self.ladder)
        samplers = plugins.hook.distill_sigma_sampler(options=recipe.as_dict())
        # pluggy answers in reverse order of registration
        self._levels = NoiseLevelSampler(self.train, self.floors, samplers[::-1])
        self.caller = Caller(self.backbone.family, accelerator.autocast)
        self._make_roles()
        adversarial = self.objective.needs.discriminator
        needs_real = adversarial is not None or self.train.rollout == "data"
        self.real = RealSamples(recipe, self.backbone, self.task, accelerator.device) if needs_real else None
        self.adversary: Adversary | None = None
        if adversarial is not None:
            where = self.backbone.family.features(self.fake_score.network)
            parts = (self.fake_score, self.caller, self.schedule, self._condition, self.real)
            self.adversary = Adversary(adversarial, where, *parts, self.train, accelerator)
            self.learners["discriminator"] = self.adversary.learner
        # A discriminator sees a real sample for each of the batch, and not one for each group.
        shows_data = self.adversary is not None and self.train.real == "data"
        rows = self.train.batch_size // (1 if shows_data else self.train.group_size)
        self.backbone.embed_prompts(self.task, self._batches_of(self.train.max_steps) * rows, recipe.config, accelerator)

    def cycle(self, schedule_factor: float = 1.0) -> Metrics:
        """`fake_updates` turns of the fake score and one of the student; advances `step`.

        Args:
            schedule_factor: what `distill_strength_schedule` made of this step.

        Raises:
            RunError: when a loss turns non-finite, before anything is updated by it, or a reward fails.
        """
        self.objective.schedule_factor = schedule_factor
        self._score_ahead()
        metrics: Metrics = {}
        for update in range(self.train.fake_updates):
            metrics = self._fake_score_turn(update)
        self._reused = None
        metrics |= self._student_turn()
        self.step += 1
        self.ema.update()
        return metrics

    @property
    def rewards(self) -> RewardSet | None:
        """The recipe's rewards; None where the objective listens to none."""
        return None if self.scoring is None else self.scoring.rewards

    @torch.no_grad()
    def sample(self, labels: Tensor, purpose: str) -> Tensor:
        """Samples [B, ...] of the averaged student, drawn with the exported scheduler; on the CPU."""
        device = self.accelerator.device
        draws = generator(self.train.seed, purpose, device=device)
        noise = torch.randn((len(labels), *self.backbone.sample_shape), generator=draws, device=device)
        made = []
        with self.ema.applied():
            size = self.recipe.config.evaluate.batch_size or len(labels)
            for part, start in zip(labels.split(size), noise.split(size), strict=True):
                condition = self._condition(part.to(device))
                predict = lambda x, t, c=condition: self.caller.call(self.student, x, t, c)  # noqa: E731
                made.append(sample(predict, self.backbone.scheduler, len(self.ladder), start, draws).cpu())
        return torch.cat(made)

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold of weights and optimizers, by name: objects with a state dict."""
        roles: dict[str, Any] = {"student": self.student, "fake_score": self.fake_score, "ema": self.ema}
        if self.adversary is not None:
            roles["discriminator"] = self.adversary.learner.role
        if self.memory is not None:
            roles["memory"] = self.memory
        return roles | {f"optimizer_{name}": learner.optimizer for name, learner in self.learners.items()}

    def _student_turn(self) -> Metrics:
        parts, learner = self._micro_batches(), self.learners["student"]
        # With several micro-batches the graphs of all of them would not fit: score first, roll out again with grad.
        batch, rollouts, asked = self._start("student", self.train.fake_updates, grad=len(parts) == 1)
        self.fake_score.rung = batch.exit_rung
        advantage = self._advantage(batch, asked)
        metrics = {} if self.scoring is None else self.scoring.metrics()
        sigma = self._sigma(batch, "student", self.objective.needs.match_range, advantage)
        outputs, suspects = [], {}
        for rows, x0 in zip(parts, rollouts, strict=True):
            x0 = x0 if x0.requires_grad else self._rollout(batch, rows, grad=True)
            signals = self._signals(x0, batch, rows, sigma, advantage)
            if self.scoring is not None and self.objective.needs.reward_gradient:
                signals = signals._replace(reward=self.scoring.with_gradient(batch, rows, x0))
            output = self.objective.student_loss(signals)
            loss = output.loss
            if self.adversary is not None:
                timestep = self.schedule.timestep(self._sigma(batch, "discriminator", None, None))
                fooling = self.adversary.student_loss(x0, batch, rows, timestep)
                metrics["loss/student_adversarial"] = fooling.detach()
                loss = loss + fooling
            learner.backward(loss / len(parts))
            outputs.append(output)
            suspects = signals._asdict()
        metrics |= {f"objective/{name}": _mean(o.metrics[name] for o in outputs) for name in outputs[0].metrics}
        if len(self.ladder) > 1 and "objective/zone_share" in metrics:
            metrics[f"objective/zone_share/rung {batch.exit_rung}"] = metrics["objective/zone_share"]
        metrics["loss/student"] = _mean(o.loss.detach() for o in outputs)
        metrics["grad_norm/student"] = learner.update(self.step, suspects)
        for sums in self.objective.shared_sums:
            sums.copy_(self.accelerator.reduce(sums, "mean"))
        return metrics

    def _fake_score_turn(self, update: int) -> Metrics:
        parts, learner = self._micro_batches(), self.learners["fake_score"]
        batch, rollouts, advantage = self._scored(update)
        self.fake_score.rung = batch.exit_rung
        sigma = self._sigma(batch, "fake_score", None, advantage)
        weight = None if advantage is None else self.objective.sharpening_weights(advantage, sigma)
        timestep, noise = self.schedule.timestep(sigma), batch.normal("noise")
        losses, by_level, suspects = [], [], {}
        for rows, x0 in zip(parts, rollouts, strict=True):
            t, labels = timestep[rows], batch.labels[rows]
            mine = None if weight is None else weight[rows]
            if self.memory is not None and mine is not None:
                x0, labels, remembered = self.memory.recall(batch, rows, x0, labels)
                mine = torch.where(remembered, 1.0, mine)
            x_t = self.schedule.level(t).add_noise(x0, noise[rows])
            prediction = self.caller.call(self.fake_score, x_t, t, self._condition(labels))
            target = self.schedule.target(x0, noise[rows], t)
            output = self.objective.fake_score_loss(prediction, target, mine)
            learner.backward(output.loss / len(parts))
            losses.append(output.loss.detach())
            by_level.append(by_band(output.per_sample, sigma[rows]))
            suspects = {"x0": x0, "prediction": prediction}
        if self.memory is not None and advantage is not None and not (update and self.train.reuse_rollouts):
            self.memory.add(batch, self.accelerator.gather(torch.cat(rollouts)), advantage)
        metrics = {f"loss/fake_score/{name}": _mean(part[name] for part in by_level) for name in by_level[0]}
        metrics |= {"loss/fake_score": _mean(losses), "grad_norm/fake_score": learner.update(self.step, suspects)}
        if self.adversary is not None:
            timestep = self.schedule.timestep(self._sigma(batch, "discriminator", None, None))
            metrics |= self.adversary.turn(batch, parts, rollouts, timestep, self.step)
        return metrics

    def _scored(self, update: int) -> tuple[Batch, list[Tensor], Tensor | None]:
        """What an update of the fake score learns from, and its advantages [B].

        With `train.reuse_rollouts` the cycle's first samples serve all its updates, with noise and levels of their own.
        """
        if update and self._reused is not None:
            batch, rollouts, advantage = self._reused
            return batch.again(update), rollouts, advantage
        batch, rollouts, asked = self._start("fake score", update, grad=False)
        scored = batch, rollouts, self._advantage(batch, asked)
        self._reused = scored if self.train.reuse_rollouts else None
        return scored

    def _rollout(self, batch: Batch, rows: slice, grad: bool) -> Tensor:
        """The student's x0 at the exit rung, reached as the exported scheduler would; only that rung carries a graph."""
        condition, rung = self._condition(batch.labels[rows]), batch.exit_rung
        timestep = self.ladder.timesteps[rung].expand(rows.stop - rows.start)
        level = self.ladder.level(rung, len(timestep))
        x = batch.normal("rung 0")[rows]
        if self.train.rollout == "data":
            x = level.add_noise(batch.real[rows], x)
        else:
            with torch.no_grad():
                predict = lambda x_t, t: self.caller.call(self.student, x_t, t, condition)  # noqa: E731
                x = self.ladder.descend(predict, x, batch.draws("rung", rows) if rung else None, rung)
        with torch.set_grad_enabled(grad):
            return self.schedule.to_x0(self.caller.call(self.student, x, timestep, condition), x, level)

    @torch.no_grad()
    def _signals(self, x0: Tensor, batch: Batch, rows: slice, sigma: Tensor, advantage: Tensor | None) -> Signals:
        """Teacher and fake score on the re-noised samples; guidance at its own noise level where the objective asks for it."""
        labels = batch.labels[rows]
        condition = self._condition(labels)
        x_t, t = self._renoise(x0, batch.normal("noise")[rows], sigma[rows])
        predict = lambda output, x, at: self.schedule.to_x0(output, x, self.schedule.level(at))  # noqa: E731
        guide_cond = guide_uncond = real_uncond = None
        own_level = self.objective.needs.uncond and self.objective.needs.guidance_range is not None
        if own_level:
            guide_sigma = self._sigma(batch, "guide", self.objective.needs.guidance_range, advantage)
            x_g, t_g = self._renoise(x0, batch.normal("guide noise")[rows], guide_sigma[rows])
            guide_cond, guide_uncond = (predict(o, x_g, t_g) for o in self._pair(x_g, t_g, condition, labels))
        if self.objective.needs.uncond and not own_level:
            real_cond, real_uncond = (predict(output, x_t, t) for output in self._pair(x_t, t, condition, labels))
        else:
            real_cond = predict(self.caller.call(self.teacher, x_t, t, condition), x_t, t)
        fake = predict(self.caller.call(self.fake_score, x_t, t, condition), x_t, t)
        mine = None if advantage is None else advantage[rows]
        about = {"groups": labels, "joined": advantage}
        return Signals(x0, real_cond, real_uncond, fake, sigma[rows], mine, guide_cond, guide_uncond, **about)

    def _pair(self, x_t: Tensor, timestep: Tensor, condition: Condition, labels: Tensor) -> list[Tensor]:
        return pair(self.caller, self.teacher, x_t, timestep, condition, self.backbone.conditions.uncond(labels))

    def _renoise(self, x0: Tensor, noise: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        timestep = self.schedule.timestep(sigma)
        return self.schedule.level(timestep).add_noise(x0.detach(), noise), timestep

    def _score_ahead(self) -> None:
        """Starts all turns of a cycle at once where rewards have processes of their own, which then work during the updates.

        The student changes only in the cycle's last update, so its samples are the same now as later. Its own turn rolls out
        once more, with a graph: keeping one through the other role's updates would cost memory.
        """
        self._ahead.clear()
        if self.scoring is not None and self.scoring.rewards.overlaps:
            turns = [("fake score", update) for update in range(1 if self.train.reuse_rollouts else self.train.fake_updates)]
            for turn in (*turns, ("student", self.train.fake_updates)):
                self._ahead[turn] = self._start(*turn, grad=False)

    def _start(self, turn: str, update: int, grad: bool) -> TurnInputs:
        if (turn, update) in self._ahead:
            return self._ahead.pop((turn, update))
        batch = self._batch(turn, update)
        rollouts = [self._rollout(batch, rows, grad) for rows in self._micro_batches()]
        asked = None if self.scoring is None else self.scoring.submit(batch, self._rows(), rollouts)
        return TurnInputs(batch, rollouts, asked)

    def _advantage(self, batch: Batch, asked: ScoringJob | None) -> Tensor | None:
        """Advantages [B] of the joined batch; None where the objective listens to no reward."""
        if self.scoring is None or asked is None:
            return None
        return self.scoring.advantage(self.objective, batch, asked)

    def _sigma(self, batch: Batch, role: str, window: tuple[float, float] | None, advantage: Tensor | None) -> Tensor:
        return self._levels(batch, role, window, advantage, self.step)

    def _condition(self, labels: Tensor) -> Condition:
        return self.backbone.conditions(labels, prompts_of(self.task, labels))

    def _make_roles(self) -> None:
        cast = build_roles(self.recipe, self.backbone, self.plugins, self.accelerator)
        self.student, self.fake_score, self.teacher, self.learners, self.ema, self.has_shares, self.student_is_sharded = cast

    def _batches_of(self, steps: int) -> int:
        return steps * (self.train.fake_updates + 1)

    def _batch(self, turn: str, update: int) -> Batch:
        key, position = (self.step, turn, update % self.train.fake_updates), self._batches_of(self.step) + update
        shape, device = self.backbone.sample_shape, self.accelerator.device
        batch = Batch(self.train, shape, self.task, len(self.ladder), key, position, device)
        if self.train.rollout == "data":
            groups = self.train.batch_size // self.train.group_size
            real, labels = self.real.draw(groups, batch.generator("real start"), batch.position)
            batch.take(real, labels)
        return batch

    def _rows(self) -> slice:
        """This process's rows of the joined batch."""
        share = self.train.batch_size // self.accelerator.num_processes
        return slice(self.accelerator.process_index * share, (self.accelerator.process_index + 1) * share)

    def _micro_batches(self) -> list[slice]:
        rows = self._rows()
        size = (rows.stop - rows.start) // self.train.accumulation
        return [slice(start, start + size) for start in range(rows.start, rows.stop, size)]


def _mean(values: Any) -> Tensor:
    return torch.stack(list(values)).float().nanmean(0)
