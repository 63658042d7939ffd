"""One cycle of distribution matching distillation: some updates of the fake score, then one of the student.

    fake-score turn:    x0 = rollout (no grad) -> rewards -> weights -> denoising loss on x0
    discriminator turn: the same x0, and real samples (objectives with an adversarial branch)
    student turn:       x0 = rollout (grad on the exit rung) -> rewards -> advantages
                        x_t = re-noised x0 -> teacher, fake score -> Signals -> objective -> loss on x0

The objective decides what signals, rewards and weights do. Nothing here depends on which objective it is.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from amd_plugin.config import TrainConfig
from amd_plugin.errors import RunError
from amd_plugin.hookspecs import Objective
from amd_plugin.host.training.adversary import Adversary
from amd_plugin.host.training.batch import Batch
from amd_plugin.host.training.extra_signals import with_extra_signals
from amd_plugin.host.training.failure_memory import BatchFailures
from amd_plugin.host.training.forward import Forward
from amd_plugin.host.training.learner import RoleOptimizer
from amd_plugin.host.training.non_finite import NonFinitePolicy
from amd_plugin.host.training.rollouts import Rollouts
from amd_plugin.host.training.scoring import Scoring
from amd_plugin.host.training.setup import set_up
from amd_plugin.host.training.turn import Trace, Turn, traced, with_directions, without_graph
from amd_plugin.maths.advantage_guidance import NONE, NONE_SHARE
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
Value = TypeVar("Value")


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
    memory: BatchFailures | None
    adversary: Adversary | None

    non_finite: NonFinitePolicy  # what becomes of an update that is not finite

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
        self.non_finite = NonFinitePolicy(self.train)
        self.step, self.mid_cycle, self._warm_ups = 0, False, 0
        hooks = (plugins.hook.distill_strength_schedule, plugins.hook.distill_advantage_schedule)
        scheduled = gather_object([any(hook.get_hookimpls() for hook in hooks)])  # where a plugin was not loaded it has none
        self._agrees = len(scheduled) > 1 and any(scheduled)

    @property
    def rewards(self) -> RewardSet | None:
        """The training rewards; None for an objective without rewards."""
        return None if self.scoring is None else self.scoring.rewards

    def agreed(self, own: Value) -> Value:
        """What schedules of plugins gave on the main process, see `PluginManager.agree`. Call on every process."""
        return self.plugins.agree(own, lambda part: gather_object([part])) if self._agrees else own

    def cycle(self, schedule_factor: float = 1.0, last_metrics: Mapping[str, float] = MappingProxyType({})) -> Metrics:
        """Runs `fake_updates` turns of the fake score and one of the student, and advances `step`.

        Args:
            schedule_factor: the factor on all that follows the reward, from `distill_strength_schedule`.
            last_metrics: the last logged metrics, for `distill_advantage_schedule`.

        Raises:
            RunError: for a gradient that is not finite, which is not applied, or for a failed reward.
        """
        self.mid_cycle = True
        self.objective.schedule_factor = schedule_factor
        for _ in self.warm_up():
            pass
        self.rollouts.begin(self.step)
        metrics: Metrics = {}
        for update in range(self.train.fake_updates):
            metrics = self.fake_score_turn(update)
        metrics |= self.student_turn(last_metrics)
        metrics |= self.non_finite.metrics(list(self.learners))
        self.step += 1
        self.ema.update()
        self.mid_cycle = False
        return metrics

    def warm_up(self) -> Iterator[int]:
        """Updates the fake score `fake_warmup` times before the first cycle, which does it otherwise; yields after each."""
        while self.step == 0 and self._warm_ups < self.train.fake_warmup:
            self.mid_cycle = True
            self.fake_score_turn(0, self._warm_ups)
            self._warm_ups += 1
            yield self._warm_ups

    def fake_score_turn(self, update: int, warm_up: int | None = None) -> Metrics:
        """Updates the fake score, and the discriminator if there is one.

        Args:
            update: index of the update within its cycle.
            warm_up: index of an update before the first cycle; None within a cycle.
        """
        batch, exits, advantage, again = self.rollouts.for_fake_score(self.step, update, warm_up)
        sigma = self.forward.noise_levels(batch, "fake_score", None, advantage)
        # Outcomes come first: by them an objective learns that this host offers them.
        outcome, parts = self._outcomes(batch, advantage), self.rollouts.micro_batches
        own_tilts = {"rungs": batch.rungs} if self.objective.needs.fake_score_rung else {}
        weight = None if advantage is None else self.objective.sharpening_weights(advantage, sigma, **own_tilts)
        turn = Turn("fake_score", batch, parts, exits, advantage, sigma, weight, outcome)
        metrics, trace = self.fake_score_gradients(turn)
        metrics = self._updated(turn, metrics, trace)
        if self.adversary is not None:
            adversarial = turn._replace(role="discriminator")
            metrics |= self._updated(adversarial, *self.adversary.gradients(batch, parts, [exit.x0 for exit in exits]))
        if self.memory is not None and advantage is not None and not again:
            self.memory.add(batch, self.accelerator.gather(torch.cat([exit.x0 for exit in exits])), advantage)
        return metrics

    def fake_score_gradients(self, turn: Turn) -> tuple[Metrics, Trace]:
        """Accumulates the gradients of the fake score's loss; returns metrics, and what was computed."""
        schedule, batch, losses, by_level, trace = self.forward.schedule, turn.batch, [], [], Trace()
        timestep, noise = schedule.timestep(turn.sigma), batch.normal("noise")
        learner = self.learners["fake_score"]
        for rows, exit in learner.micro_batches([*zip(turn.parts, turn.exits, strict=True)]):
            x0, t, labels = exit.x0, timestep[rows], batch.labels[rows]
            weight = None if turn.weight is None else turn.weight[rows]
            outcome = None if turn.outcome is None else turn.outcome[rows]
            if self.memory is not None and weight is not None:
                x0, labels, remembered = self.memory.recall(batch, rows, x0, labels)
                # With outcomes only a share of the turn's own samples is without one, so a remembered one counts as much less.
                weight = torch.where(remembered, 1.0 if outcome is None else NONE_SHARE, weight)
                outcome = None if outcome is None else outcome.where(~remembered, NONE)
            x_t = schedule.level(t).add_noise(x0, noise[rows])
            self.fake_score.rung, self.fake_score.outcome = batch.rungs_of(rows), outcome
            prediction = self.forward.caller.call(self.fake_score, x_t, t, self.forward.condition(labels))
            output = self.objective.fake_score_loss(prediction, schedule.target(x0, noise[rows], t), weight)
            learner.backward(output.loss / len(turn.parts))
            self.fake_score.outcome = NONE
            losses.append(output.loss.detach())
            by_level.append(by_band(output.per_sample, turn.sigma[rows]))
            trace.append(traced({"x0": x0, "weight": weight, "prediction": prediction, "loss": output.per_sample}))
        metrics = {f"loss/fake_score/{name}": _mean(part[name] for part in by_level) for name in by_level[0]}
        return metrics | {"loss/fake_score": _mean(losses)}, trace

    def student_turn(self, last_metrics: Mapping[str, float] = MappingProxyType({})) -> Metrics:
        """Updates the student; `last_metrics` are for `distill_advantage_schedule`."""
        batch, exits, advantage, _ = self.rollouts.for_student(self.step)
        metrics = {} if self.scoring is None else self.scoring.metrics()
        sigma = self.forward.noise_levels(batch, "student", self.objective.needs.match_range, advantage)
        factors = self._advantage_factors(sigma, last_metrics)
        turn = Turn("student", batch, self.rollouts.micro_batches, exits, advantage, sigma, factors=factors)
        before = copy.deepcopy(self.objective)  # the loss adds to its statistics, which must not keep what is left out
        found, trace, signals = self.student_gradients(turn)
        metrics |= self._updated(turn, found, trace, signals, before)
        for sums in self.objective.shared_sums:
            sums.copy_(self.accelerator.reduce(sums, "mean"))
        return metrics

    def student_gradients(self, turn: Turn) -> tuple[Metrics, Trace, list[Signals]]:
        """Accumulates the gradients of the student's loss; returns metrics, what was computed, and the signals."""
        batch, outputs, trace, seen, adversarial = turn.batch, [], Trace(), list[Signals](), list[Tensor]()
        learner = self.learners["student"]
        for rows, (x, x0) in learner.micro_batches([*zip(turn.parts, turn.exits, strict=True)]):
            x0 = x0 if x0.requires_grad else self.forward.leave(x, batch, rows, grad=True).x0
            signals = self._with_reward(self.forward.signals(x0, batch, rows, turn.sigma, turn.advantage), batch, rows)
            signals = signals if turn.factors is None else signals._replace(advantage_factor=turn.factors[rows])
            signals = with_extra_signals(self.forward, signals, batch, rows)
            output = self.objective.student_loss(signals)
            loss = output.loss
            if self.adversary is not None:
                adversarial.append(self.adversary.student_loss(x0, batch, rows, self.adversary.timestep(batch)))
                loss = loss + adversarial[-1]
            learner.backward(loss / len(turn.parts))
            outputs.append(output)
            seen.append(without_graph(signals))
            trace.append(traced({**seen[-1]._asdict(), "loss": output.per_sample}))
        names = dict.fromkeys(name for output in outputs for name in output.metrics)
        metrics = {f"objective/{name}": _mean(o.metrics[name] for o in outputs if name in o.metrics) for name in names}
        metrics["loss/student"] = _mean(o.loss.detach() for o in outputs)
        if adversarial:
            metrics["loss/student_adversarial"] = _mean(loss.detach() for loss in adversarial)
        return metrics, trace, seen

    def _updated(
        self, turn: Turn, metrics: Metrics, trace: Trace, signals: Sequence[Signals] = (), before: Objective | None = None
    ) -> Metrics:
        """Applies the gradients of `turn`, or leaves it out; returns its metrics, which are NaN in the second case.

        Args:
            turn: the update.
            metrics: its metrics so far.
            trace: what it computed.
            signals: the student's signals, by micro-batch.
            before: the objective as it was before them.

        Raises:
            RunError: where the recipe does not let the update be left out.
        """
        norm = self.learners[turn.role].update(self.step)
        metrics = metrics | {f"grad_norm/{turn.role}": norm}
        # The norm is on the CPU. The next update waits for it, so that a dump has the weights that this one began with.
        if bool(torch.isfinite(norm)):
            return metrics
        if before is not None:
            vars(self.objective).update(vars(copy.deepcopy(before)))
            trace = with_directions(copy.deepcopy(before), signals, trace)
        self.non_finite.refuse(self, turn, trace, self.objective.state_dict())
        return {name: torch.full_like(value, torch.nan) for name, value in metrics.items()}

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
                condition = self.forward.condition(labels[first : first + size])
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
        if wrong := [tuple(factor.shape) for factor in factors if factor.shape != sigma.shape]:
            raise RunError(f"distill_advantage_schedule of a plugin: must return {len(sigma)} factors, got shape {wrong[0]}")
        product = math.prod(factors[1:], start=factors[0].to(sigma)) if factors else None
        if not self._agrees:
            return product
        agreed = self.agreed(None if product is None else product.tolist())
        return None if agreed is None else torch.tensor(agreed).to(sigma)

    def _with_reward(self, signals: Signals, batch: Batch, rows: slice) -> Signals:
        """`signals` with a differentiable reward, if the objective follows its gradient."""
        if self.scoring is None or not (self.objective.needs.reward_gradient and self.scoring.has_gradient):
            return signals
        return signals._replace(reward=self.scoring.with_gradient(batch, rows, signals.x0))


def _mean(values: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(values)).float().nanmean(0)
