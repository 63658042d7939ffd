"""One cycle of distribution matching distillation: some updates of the fake score, then one of the student.

    fake-score turn:    x0 = rollout (no grad) -> rewards -> weights -> denoising loss on x0
    discriminator turn: the same x0, and real samples (objectives with an adversarial branch)
    student turn:       x0 = rollout (grad on the exit rung) -> rewards -> advantages
                        x_t = re-noised x0 -> teacher, fake score -> Signals -> objective -> loss on x0

The objective decides what signals, rewards and weights do. Nothing here depends on which objective it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from amd_plugin.config import TrainConfig
from amd_plugin.hookspecs import Objective
from amd_plugin.host.training.adversary import Adversary
from amd_plugin.host.training.batch import Batch
from amd_plugin.host.training.extra_signals import with_extra_signals
from amd_plugin.host.training.failure_memory import FailureMemory
from amd_plugin.host.training.forward import Forward
from amd_plugin.host.training.learner import RoleOptimizer
from amd_plugin.host.training.rollouts import Rollouts
from amd_plugin.host.training.scoring import Scoring
from amd_plugin.host.training.setup import set_up
from amd_plugin.maths.advantage_guidance import NONE
from amd_plugin.maths.coherence import by_band
from amd_plugin.maths.signals import Signals
from amd_plugin.models.backbone import Backbone
from amd_plugin.models.ema import EMA
from amd_plugin.models.roles import Role
from amd_plugin.plugins import PluginManager
from amd_plugin.randomness import generator
from amd_plugin.recipe.loading import Recipe
from amd_plugin.rewards.reward_set import RewardSet
from amd_plugin.schedule import sample
from amd_plugin.tasks import Task

Metrics = dict[str, Tensor]


class Trainer:
    """The roles of a run, and the turns that train them.

    Args:
        recipe: the recipe.
        plugins: the registry of objectives, rewards, families and hooks.
        accelerator: the run's processes and precision.

    Raises:
        InputError: for a recipe that does not fit these processes, or names something that cannot be used.
    """

    # The run.
    recipe: Recipe
    plugins: PluginManager
    accelerator: Accelerator
    train: TrainConfig
    task: Task
    objective: Objective

    # The networks.
    backbone: Backbone  # the model from which all roles start
    student: Role
    fake_score: Role
    teacher: Role
    ema: EMA  # the moving average of the student's weights, which is evaluated and exported
    learners: dict[str, RoleOptimizer]  # by the name of what they train
    has_shares: bool  # each process holds a share of the trained weights, so that all processes save and load together
    student_is_sharded: bool  # all processes have to call the student equally often

    # The parts of a turn.
    forward: Forward
    rollouts: Rollouts
    scoring: Scoring | None  # None for an objective without rewards
    memory: FailureMemory | None
    adversary: Adversary | None

    # The state.
    step: int  # student updates so far
    mid_cycle: bool  # a cycle was begun and not ended, so that the state is of no step

    def __init__(self, recipe: Recipe, plugins: PluginManager, accelerator: Accelerator):
        self.recipe, self.plugins, self.accelerator, self.train = recipe, plugins, accelerator, recipe.config.train
        setup = set_up(recipe, plugins, accelerator)
        self.task, self.objective, self.backbone = setup.task, setup.objective, setup.backbone
        self.student, self.fake_score, self.teacher = setup.roles.student, setup.roles.fake_score, setup.roles.teacher
        self.learners, self.ema = setup.roles.learners, setup.roles.ema
        self.has_shares, self.student_is_sharded = setup.roles.has_shares, setup.roles.student_is_sharded
        self.forward, self.rollouts, self.scoring = setup.forward, setup.rollouts, setup.scoring
        self.memory, self.adversary = setup.memory, setup.adversary
        self.step, self.mid_cycle = 0, False

    @property
    def rewards(self) -> RewardSet | None:
        """The training rewards; None for an objective without rewards."""
        return None if self.scoring is None else self.scoring.rewards

    def cycle(self, schedule_factor: float = 1.0, last_metrics: Mapping[str, float] = MappingProxyType({})) -> Metrics:
        """Runs `fake_updates` turns of the fake score and one of the student, and advances `step`.

        Args:
            schedule_factor: the factor on all that follows the reward, from `distill_strength_schedule`.
            last_metrics: the last logged metrics, for `distill_advantage_schedule`.

        Raises:
            RunError: for a gradient that is not finite, before it is applied, or for a failed reward.
        """
        self.mid_cycle = True
        self.objective.schedule_factor = schedule_factor
        for warm_up in range(0 if self.step else self.train.fake_warmup):
            self.fake_score_turn(0, warm_up)
        self.rollouts.begin(self.step)
        metrics: Metrics = {}
        for update in range(self.train.fake_updates):
            metrics = self.fake_score_turn(update)
        metrics |= self.student_turn(last_metrics)
        self.step += 1
        self.ema.update()
        self.mid_cycle = False
        return metrics

    def fake_score_turn(self, update: int, warm_up: int | None = None) -> Metrics:
        """Updates the fake score, and the discriminator if there is one.

        Args:
            update: index of the update within its cycle.
            warm_up: index of an update before the first cycle; None within a cycle.
        """
        parts, learner, schedule = self.rollouts.micro_batches, self.learners["fake_score"], self.forward.schedule
        batch, exits, advantage, again = self.rollouts.for_fake_score(self.step, update, warm_up)
        rollouts = [exit.x0 for exit in exits]
        sigma = self.forward.noise_levels(batch, "fake_score", None, advantage)
        weight = None if advantage is None else self.objective.sharpening_weights(advantage, sigma)
        outcome = self._outcomes(batch, advantage)
        timestep, noise = schedule.timestep(sigma), batch.normal("noise")
        losses, by_level, suspects = [], [], {}
        for rows, x0 in zip(parts, rollouts, strict=True):
            t, labels = timestep[rows], batch.labels[rows]
            part_weight = None if weight is None else weight[rows]
            part_outcome = None if outcome is None else outcome[rows]
            if self.memory is not None and part_weight is not None:
                x0, labels, remembered = self.memory.recall(batch, rows, x0, labels)
                part_weight = torch.where(remembered, 1.0, part_weight)
                part_outcome = None if part_outcome is None else part_outcome.where(~remembered, NONE)
            x_t = schedule.level(t).add_noise(x0, noise[rows])
            self.fake_score.rung, self.fake_score.outcome = batch.rungs_of(rows), part_outcome
            prediction = self.forward.caller.call(self.fake_score, x_t, t, self.forward.condition(labels))
            target = schedule.target(x0, noise[rows], t)
            output = self.objective.fake_score_loss(prediction, target, part_weight)
            learner.backward(output.loss / len(parts))
            self.fake_score.outcome = NONE
            losses.append(output.loss.detach())
            by_level.append(by_band(output.per_sample, sigma[rows]))
            suspects = {"x0": x0, "prediction": prediction}
        if self.memory is not None and advantage is not None and not again:
            self.memory.add(batch, self.accelerator.gather(torch.cat(rollouts)), advantage)
        metrics = {f"loss/fake_score/{name}": _mean(part[name] for part in by_level) for name in by_level[0]}
        metrics |= {"loss/fake_score": _mean(losses), "grad_norm/fake_score": learner.update(self.step, suspects)}
        if self.adversary is not None:
            metrics |= self.adversary.turn(batch, parts, rollouts)
        return metrics

    def student_turn(self, last_metrics: Mapping[str, float] = MappingProxyType({})) -> Metrics:
        """Updates the student; `last_metrics` are for `distill_advantage_schedule`."""
        parts, learner = self.rollouts.micro_batches, self.learners["student"]
        batch, exits, advantage, _ = self.rollouts.for_student(self.step)
        metrics = {} if self.scoring is None else self.scoring.metrics()
        sigma = self.forward.noise_levels(batch, "student", self.objective.needs.match_range, advantage)
        factors = self._advantage_factors(sigma, last_metrics)
        outputs, suspects = [], {}
        for rows, (x, x0) in zip(parts, exits, strict=True):
            x0 = x0 if x0.requires_grad else self.forward.leave(x, batch, rows, grad=True).x0
            signals = self._with_reward(self.forward.signals(x0, batch, rows, sigma, advantage), batch, rows)
            signals = signals if factors is None else signals._replace(advantage_factor=factors[rows])
            signals = with_extra_signals(self.forward, signals, batch, rows)
            output = self.objective.student_loss(signals)
            loss = output.loss
            if self.adversary is not None:
                adversarial = self.adversary.student_loss(x0, batch, rows, self.adversary.timestep(batch))
                metrics["loss/student_adversarial"] = adversarial.detach()
                loss = loss + adversarial
            learner.backward(loss / len(parts))
            outputs.append(output)
            suspects = signals._asdict()
        names = dict.fromkeys(name for output in outputs for name in output.metrics)  # a micro-batch may lack some rungs
        metrics |= {f"objective/{name}": _mean(o.metrics[name] for o in outputs if name in o.metrics) for name in names}
        metrics["loss/student"] = _mean(o.loss.detach() for o in outputs)
        metrics["grad_norm/student"] = learner.update(self.step, suspects)
        for sums in self.objective.shared_sums:
            sums.copy_(self.accelerator.reduce(sums, "mean"))
        return metrics

    @torch.no_grad()
    def sample(self, labels: Tensor, purpose: str, between: Callable[[], None] = lambda: None) -> Tensor:
        """Samples [N, ...] of the student's EMA on the CPU, drawn with the exported scheduler.

        Args:
            labels: the labels [N].
            purpose: the key of the random numbers.
            between: called before each batch.
        """
        device = self.accelerator.device
        draws = generator(self.train.seed, purpose, device=device)
        noise = torch.randn((len(labels), *self.backbone.sample_shape), generator=draws, device=device)
        size = self.recipe.config.evaluate.batch_size or len(labels)
        samples = []
        with self.ema.applied():
            for first in range(0, len(labels), size):
                between()
                condition = self.forward.condition(labels[first : first + size].to(device))
                predict = lambda x, t, c=condition: self.forward.caller.call(self.student, x, t, c)  # noqa: E731
                part = sample(predict, self.backbone.scheduler, len(self.forward.ladder), noise[first : first + size], draws)
                samples.append(part.cpu())
        return torch.cat(samples)

    def state(self) -> dict[str, Any]:
        """The weights and optimizers of a checkpoint, by name: objects with `state_dict` and `load_state_dict`."""
        roles: dict[str, Any] = {"student": self.student, "fake_score": self.fake_score, "ema": self.ema}
        if self.adversary is not None:
            roles["discriminator"] = self.adversary.learner.role
        if self.memory is not None:
            roles["memory"] = self.memory
        return roles | {f"optimizer_{name}": learner.optimizer for name, learner in self.learners.items()}

    def _outcomes(self, batch: Batch, advantage: Tensor | None) -> Tensor | None:
        """The outcome [B] that the fake score is trained with for each sample; None for an objective that needs none."""
        if advantage is None or not self.fake_score.takes_outcome:
            return None
        return self.objective.outcomes(advantage, batch.uniform("outcome", (0.0, 1.0)))

    def _advantage_factors(self, sigma: Tensor, last_metrics: Mapping[str, float]) -> Tensor | None:
        """The factors [B] of the plugins' schedules on advantage guidance; None for 1 everywhere."""
        if not self.fake_score.takes_outcome:
            return None
        factors = self.plugins.hook.distill_advantage_schedule(
            sigma=sigma, step=self.step, max_steps=self.train.max_steps, metrics=last_metrics
        )
        return math.prod(factors[1:], start=factors[0].to(sigma)) if factors else None

    def _with_reward(self, signals: Signals, batch: Batch, rows: slice) -> Signals:
        """`signals` with a differentiable reward, if the objective follows its gradient."""
        if self.scoring is None or not self.objective.needs.reward_gradient:
            return signals
        return signals._replace(reward=self.scoring.with_gradient(batch, rows, signals.x0))


def _mean(values: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(values)).float().nanmean(0)
