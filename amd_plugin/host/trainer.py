"""One cycle of distribution matching distillation: some updates of the fake score, then one of the student.

    fake-score turn: x0 = rollout (no grad) -> rewards -> weights -> denoising loss on x0
    student turn:    x0 = rollout (grad on the exit rung) -> rewards -> advantages
                     x_t = re-noised x0 -> teacher, fake score -> Signals -> objective -> loss on x0

What happens to signals, rewards and weights is the objective's business; nothing here knows which one it is.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from amd_plugin.errors import InputError, RunError
from amd_plugin.host.batch import Batch
from amd_plugin.models import ClassConditional
from amd_plugin.models.teacher import teacher as trained_teacher
from amd_plugin.plugins import PluginManager
from amd_plugin.randomness import generator
from amd_plugin.recipe import Recipe
from amd_plugin.rewards.reward_set import RewardSet
from amd_plugin.schedule import NoiseSchedule, few_step_scheduler, sample
from amd_plugin.signals import Signals
from amd_plugin.tasks import TASKS

Metrics = dict[str, Tensor]


class Trainer:
    """Networks, optimizers and the two turns.

    Attributes:
        step: student updates done.
        student, fake_score: the plain networks, for all calls without gradient; `ema` averages the student. Calls with
            gradient go through their wrapped twins, which join gradients over processes.
        scheduler: the few-step scheduler that is trained for and exported.
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
        self.task = TASKS[config.data.task](**config.data.options)
        self.objective = plugins.make_objective(config.objective.name, recipe.objective_options)
        self.rewards = RewardSet(config.rewards, plugins, self.task) if self.objective.needs_reward else None
        samplers = plugins.hook.distill_sigma_sampler(options=recipe.as_dict())
        self._samplers = [*reversed(samplers)]  # pluggy answers in reverse order of registration

        self.scheduler = few_step_scheduler(config.model.student_steps)
        self.schedule = NoiseSchedule(self.scheduler)
        self.rungs = self.schedule.rungs(config.model.student_steps).to(accelerator.device)
        self.call = ClassConditional(self.task.num_classes)

        network = trained_teacher(config.model, self.task, self.train.seed)
        student, fake = (copy.deepcopy(network).requires_grad_(True) for _ in range(2))
        self.ema = AveragedModel(student, multi_avg_fn=get_ema_multi_avg_fn(self.train.ema)).to(accelerator.device)
        self.teacher: nn.Module = plugins.hook.distill_prepare_frozen(
            role="teacher", module=network, accelerator=accelerator, options=recipe.as_dict()
        )
        self.student, self.fake_score = student.to(accelerator.device), fake.to(accelerator.device)
        self._student_with_grad, self.student_optimizer = self._prepare(student, self.train.student_lr)
        self._fake_with_grad, self.fake_optimizer = self._prepare(fake, self.train.fake_lr)

    def cycle(self, strength_scale: float = 1.0) -> Metrics:
        """`fake_updates` turns of the fake score and one of the student; advances `step`.

        Args:
            strength_scale: what `distill_strength_schedule` made of this step.

        Raises:
            RunError: when a loss turns non-finite, before anything is updated by it, or a reward fails.
        """
        self.objective.strength_scale = strength_scale
        metrics: Metrics = {}
        for update in range(self.train.fake_updates):
            metrics = self._fake_score_turn(update)
        metrics |= self._student_turn()
        self.step += 1
        self.ema.update_parameters(self.student)
        return metrics

    @torch.no_grad()
    def sample(self, labels: Tensor, purpose: str) -> Tensor:
        """Samples [B, ...] of the averaged student, drawn with the exported scheduler; on the CPU."""
        device = self.accelerator.device
        draws = generator(self.train.seed, purpose, device=device)
        noise = torch.randn((len(labels), *self.task.sample_shape), generator=draws, device=device)
        labels = labels.to(device)
        network = lambda x, t: self.call(self.ema.module, x, t, labels)  # noqa: E731
        return sample(network, self.scheduler, len(self.rungs), noise, draws).cpu()

    def networks(self) -> dict[str, nn.Module]:
        """What a checkpoint must hold, unwrapped, by name."""
        return {"student": self.student, "fake_score": self.fake_score, "ema": self.ema}

    def optimizers(self) -> dict[str, Any]:
        """Likewise."""
        return {"student": self.student_optimizer, "fake_score": self.fake_optimizer}

    def _student_turn(self) -> Metrics:
        batch = self._batch("student")
        parts = self._micro_batches()
        # With several micro-batches the graphs of all of them would not fit: score first, roll out again with grad.
        rollouts = [self._rollout(batch, rows, grad=len(parts) == 1) for rows in parts]
        advantage, metrics = self._advantage(batch, rollouts)
        sigma = self._sigma(batch, "student", self.objective.match_sigma, advantage)
        outputs = []
        for rows, x0 in zip(parts, rollouts, strict=True):
            x0 = x0 if x0.requires_grad else self._rollout(batch, rows, grad=True)
            signals = self._signals(x0, batch, rows, sigma, advantage)
            output = self.objective.student_loss(signals)
            self.accelerator.backward(output.loss / len(parts))
            outputs.append(output)
            suspects = signals._asdict()
        metrics |= {f"objective/{name}": _mean(o.metrics[name] for o in outputs) for name in outputs[0].metrics}
        metrics["loss/student"] = _mean(o.loss.detach() for o in outputs)
        metrics["grad_norm/student"] = self._update(
            self.student, self.student_optimizer, self.train.student_lr, "student", suspects
        )
        return metrics

    def _fake_score_turn(self, update: int) -> Metrics:
        batch = self._batch("fake score", update)
        parts = self._micro_batches()
        rollouts = [self._rollout(batch, rows, grad=False) for rows in parts]
        advantage, _ = self._advantage(batch, rollouts)
        weight = None if advantage is None else self.objective.sharpening_weights(advantage)
        timestep = self.schedule.timestep(self._sigma(batch, "fake_score", None, advantage))
        noise = batch.normal("noise")
        losses = []
        for rows, x0 in zip(parts, rollouts, strict=True):
            t, labels = timestep[rows], batch.labels[rows]
            x_t = self.schedule.level(t).add_noise(x0, noise[rows])
            prediction = self.call(self._fake_with_grad, x_t, t, labels)
            target = self.schedule.target(x0, noise[rows], t)
            loss = self.objective.fake_score_loss(prediction, target, None if weight is None else weight[rows]).loss
            self.accelerator.backward(loss / len(parts))
            losses.append(loss.detach())
            suspects = {"x0": x0, "prediction": prediction}
        norm = self._update(self.fake_score, self.fake_optimizer, self.train.fake_lr, "fake score", suspects)
        return {"loss/fake_score": _mean(losses), "grad_norm/fake_score": norm}

    def _rollout(self, batch: Batch, rows: slice, grad: bool) -> Tensor:
        """Backward simulation over the exported scheduler's rungs down to the exit rung; only that one carries a graph."""
        labels = batch.labels[rows]
        x = batch.normal("rung 0")[rows]
        for rung in range(batch.exit_rung + 1):
            timestep = self.rungs[rung].expand(len(labels))
            last = rung == batch.exit_rung
            network = self._student_with_grad if last and grad else self.student
            with torch.set_grad_enabled(last and grad):
                x0 = self.schedule.to_x0(self.call(network, x, timestep, labels), x, timestep)
            if not last:
                level = self.schedule.level(self.rungs[rung + 1].expand(len(labels)))
                x = level.add_noise(x0, batch.normal(f"rung {rung + 1}")[rows])
        return x0

    @torch.no_grad()
    def _signals(self, x0: Tensor, batch: Batch, rows: slice, sigma: Tensor, advantage: Tensor | None) -> Signals:
        """Teacher and fake score on the re-noised samples; guidance at its own noise level where the objective asks for it."""
        labels = batch.labels[rows]
        x_t, t = self._renoise(x0, batch.normal("noise")[rows], sigma[rows])
        predict = lambda output, x, at: self.schedule.to_x0(output, x, at)  # noqa: E731
        guide_cond = guide_uncond = real_uncond = None
        own_level = self.objective.needs_uncond and self.objective.guidance_sigma is not None
        if own_level:
            guide_sigma = self._sigma(batch, "guide", self.objective.guidance_sigma, advantage)
            x_g, t_g = self._renoise(x0, batch.normal("guide noise")[rows], guide_sigma[rows])
            guide_cond, guide_uncond = (predict(o, x_g, t_g) for o in self.call.pair(self.teacher, x_g, t_g, labels))
        if self.objective.needs_uncond and not own_level:
            pair = self.call.pair(self.teacher, x_t, t, labels)
            real_cond, real_uncond = (predict(output, x_t, t) for output in pair)
        else:
            real_cond = predict(self.call(self.teacher, x_t, t, labels), x_t, t)
        fake = predict(self.call(self.fake_score, x_t, t, labels), x_t, t)
        mine = None if advantage is None else advantage[rows]
        return Signals(x0, real_cond, real_uncond, fake, sigma[rows], mine, guide_cond, guide_uncond)

    def _renoise(self, x0: Tensor, noise: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        timestep = self.schedule.timestep(sigma)
        return self.schedule.level(timestep).add_noise(x0.detach(), noise), timestep

    def _advantage(self, batch: Batch, rollouts: list[Tensor]) -> tuple[Tensor | None, Metrics]:
        """Advantages [B] of the joined batch, the same on every process; None where the objective listens to no reward."""
        if self.rewards is None:
            return None, {}
        x0 = torch.cat([rollout.detach() for rollout in rollouts])
        labels = batch.labels[self._rows()]
        scores = self.rewards(self.task.decode(x0), self.task.prompts(labels), labels=labels)
        failed = torch.tensor([float(bool(scores.failure))], device=x0.device)
        # Every process learns of a failure before any of them raises: a lone exception would leave the rest waiting.
        if self.accelerator.gather(failed).any():
            where = scores.failure or "a reward failed on another process; its log says which"
            raise RunError(f"{where}\nSet on_error: neutral on that reward to give such batches advantage 0 instead")
        reward = self.accelerator.gather(scores.total)
        metrics = {f"reward/{name}": values.nanmean() for name, values in scores.each.items()}
        return self.objective.advantage(reward, batch.labels), metrics

    def _sigma(self, batch: Batch, role: str, window: tuple[float, float] | None, advantage: Tensor | None) -> Tensor:
        """Noise levels [B] as fractions of the schedule: the host's uniform draw, then every plugin's sampler in turn."""
        sigma = batch.uniform(f"sigma {role}", window or self.train.sigma)
        for index, sampler in enumerate(self._samplers):
            draws = batch.generator(f"sigma {role} sampler {index}")
            moved = sampler(sigma, role=role, advantage=advantage, step=self.step, generator=draws)
            if moved.shape != sigma.shape or not ((moved >= 0) & (moved <= 1)).all():
                raise RunError(f"sigma sampler {sampler!r}: must return {len(sigma)} levels in [0, 1], got {moved}")
            sigma = moved
        return sigma

    def _update(self, network: nn.Module, optimizer: Any, peak: float, name: str, suspects: dict[str, Any]) -> Tensor:
        """Clips, checks and steps; returns the gradient norm."""
        norm = self.accelerator.clip_grad_norm_(network.parameters(), self.train.clip_norm)
        # The norm is of gradients averaged over all processes, so all of them come to the same verdict here.
        if not torch.isfinite(norm):
            raise RunError(f"step {self.step + 1}, {name} update: the gradient is not finite; {_culprits(suspects)}")
        for group in optimizer.param_groups:
            group["lr"] = peak * self._learning_rate_factor()
        optimizer.step()
        optimizer.zero_grad()
        return norm

    def _learning_rate_factor(self) -> float:
        warm_up = min(1.0, (self.step + 1) / (self.train.warmup_steps + 1))
        decay = 1 - 0.9 * self.step / self.train.max_steps if self.train.decay == "linear" else 1.0
        return warm_up * decay

    def _prepare(self, network: nn.Module, learning_rate: float) -> tuple[nn.Module, Any]:
        optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate, betas=self.train.betas, fused=True)
        prepared = self.accelerator.prepare(network, optimizer)
        return prepared[0], prepared[1]

    def _batch(self, turn: str, update: int = 0) -> Batch:
        key = (self.step, turn, update)
        return Batch(self.train, self.task.sample_shape, self.task.num_classes, len(self.rungs), key, self.accelerator.device)

    def _rows(self) -> slice:
        """This process's rows of the joined batch."""
        share = self.train.batch_size // self.accelerator.num_processes
        return slice(self.accelerator.process_index * share, (self.accelerator.process_index + 1) * share)

    def _micro_batches(self) -> list[slice]:
        rows = self._rows()
        size = (rows.stop - rows.start) // self.train.accumulation
        return [slice(start, start + size) for start in range(rows.start, rows.stop, size)]


def _mean(values: Any) -> Tensor:
    return torch.stack(list(values)).float().mean(0)


def _culprits(suspects: dict[str, Any]) -> str:
    """Which tensors hold non-finite values, in which samples of this process."""
    found = []
    for name, value in suspects.items():
        if isinstance(value, Tensor):
            rows = (~torch.isfinite(value.detach())).flatten(1 if value.dim() > 1 else 0)
            bad = rows.any(1) if rows.dim() > 1 else rows
            if bad.any():
                found.append(f"{name} in samples {bad.nonzero().flatten().tolist()[:8]}")
    return "; ".join(found) or "no tensor of this process is; look at the others, or lower the learning rate"
