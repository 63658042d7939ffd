"""The networks of a run as functions of a batch: rollouts of the student, and `Signals` of all three roles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from amd_plugin.hookspecs import Objective
from amd_plugin.host.training.batch import Batch
from amd_plugin.host.training.noise_levels import NoiseLevelSampler
from amd_plugin.host.training.roles import Roles
from amd_plugin.maths.advantage_guidance import BAD, GOOD, NONE
from amd_plugin.maths.signals import Signals
from amd_plugin.models.backbone import Backbone
from amd_plugin.models.conditions import prompts_of
from amd_plugin.models.family import Caller, Condition, pair
from amd_plugin.models.roles import Role
from amd_plugin.schedule import Ladder, NoiseSchedule
from amd_plugin.tasks import Task


class Exit(NamedTuple):
    """The student's call at the exit rung.

    Attributes:
        x: the network's input [b, ...].
        x0: the predicted sample [b, ...].
    """

    x: Tensor
    x0: Tensor


@dataclass(frozen=True, kw_only=True)
class Forward:
    """All forward passes of training. B samples in the joined batch, b of them in the `rows` of one micro-batch.

    Attributes:
        roles: the student, fake score and teacher.
        backbone: the model that provides conditions.
        task: the task that provides prompts.
        objective: the objective whose needs select the predictions of `signals`.
        caller: the network calls in each network's precision.
        schedule: the noise schedule at which networks are compared.
        ladder: the denoising steps that are trained and exported.
        noise_levels: the sampler of re-noising levels.
        from_data: whether rollouts start from noised real samples instead of from noise.
    """

    roles: Roles
    backbone: Backbone
    task: Task
    objective: Objective
    caller: Caller
    schedule: NoiseSchedule
    ladder: Ladder
    noise_levels: NoiseLevelSampler
    from_data: bool

    def condition(self, labels: Tensor) -> Condition:
        """The networks' condition for `labels` [b], on the CPU."""
        return self.backbone.conditions(self.on_device(labels), prompts_of(self.task, labels))

    def on_device(self, labels: Tensor) -> Tensor:
        """`labels` on the networks' device, without waiting for it."""
        return labels.to(self.ladder.timesteps.device, non_blocking=True)

    def rollout(self, batch: Batch, rows: slice, *, grad: bool) -> Exit:
        """The student at the exit rung of a batch with one rung, reached as the exported scheduler reaches it.

        Args:
            batch: the joined batch.
            rows: the rows of the micro-batch.
            grad: whether the exit rung's call records a graph; earlier rungs never do.
        """
        rung, noise = batch.exit_rung, batch.normal("rung 0")[rows]
        if self.from_data:
            level = self.ladder.level(rung, len(noise))
            return self.leave(level.add_noise(batch.real[rows], noise), batch, rows, grad=grad)
        condition = self.condition(batch.labels[rows])
        with torch.no_grad():
            predict = lambda x, t: self.caller.call(self.roles.student, x, t, condition)  # noqa: E731
            x = self.ladder.descend(predict, noise, batch.generators("rung", rows) if rung else None, rung)
        return self.leave(x, batch, rows, grad=grad)

    def leave(self, x: Tensor, batch: Batch, rows: slice, *, grad: bool) -> Exit:
        """The student's x0 from its inputs `x` [b, ...] at each sample's exit rung, by one call."""
        rungs = batch.rungs[rows].to(x.device)
        level = self.ladder.levels_at(rungs)
        condition = self.condition(batch.labels[rows])
        with torch.set_grad_enabled(grad):
            output = self.caller.call(self.roles.student, x, self.ladder.timesteps[rungs], condition)
            return Exit(x, self.schedule.to_x0(output, x, level))

    @torch.no_grad()
    def descent(self, batch: Batch, rows: slice) -> list[Exit]:
        """The student at every rung of one rollout from noise: what `rollout` gives for each of them."""
        student, condition, exits = self.roles.student, self.condition(batch.labels[rows]), list[Exit]()

        def predict(x: Tensor, timestep: Tensor) -> Tensor:
            output = self.caller.call(student, x, timestep, condition)
            exits.append(Exit(x, self.schedule.to_x0(output, x, self.ladder.level(len(exits), len(x)))))
            return output

        self.ladder.descend(predict, batch.normal("rung 0")[rows], batch.generators("rung", rows), len(self.ladder))
        return exits

    def signals(self, x0: Tensor, batch: Batch, rows: slice, sigma: Tensor, advantage: Tensor | None) -> Signals:
        """The predictions of teacher and fake score from the re-noised samples `x0` [b, ...], without gradients to either.

        The guidance term gets a noise level of its own where the objective needs a `guidance_range`.

        Args:
            x0: the student's samples; gradients of the objective's loss flow to them.
            batch: the joined batch.
            rows: the rows of the micro-batch.
            sigma: the noise levels [B], as fractions of the schedule.
            advantage: the advantages [B]; None for an objective without rewards.
        """
        labels, needs = batch.labels[rows], self.objective.needs
        condition = self.condition(labels)
        self.roles.fake_score.rung = batch.rungs_of(rows)
        with torch.no_grad():
            x_t, timestep = self.renoise(x0, batch.normal("noise")[rows], sigma[rows])
            guide_cond = guide_uncond = real_uncond = None
            own_level = needs.uncond and needs.guidance_range is not None
            if own_level:
                guide_sigma = self.noise_levels(batch, "guide", needs.guidance_range, advantage)
                x_guide, guide_timestep = self.renoise(x0, batch.normal("guide noise")[rows], guide_sigma[rows])
                guide_cond, guide_uncond = self._teacher_pair(x_guide, guide_timestep, condition, labels)
            if needs.uncond and not own_level:
                real_cond, real_uncond = self._teacher_pair(x_t, timestep, condition, labels)
            else:
                real_cond = self._x0(self.roles.teacher, x_t, timestep, condition)
            fake = self._fake_x0(x_t, timestep, condition, NONE)
            fake_bad = fake_good = None
            if self.roles.fake_score.takes_outcome:
                fake_bad, fake_good = (self._fake_x0(x_t, timestep, condition, outcome) for outcome in (BAD, GOOD))
        return Signals(
            x0, real_cond, real_uncond, fake, sigma[rows], None if advantage is None else advantage[rows], guide_cond,
            guide_uncond, groups=self.on_device(labels), batch_advantage=advantage, fake_bad=fake_bad, fake_good=fake_good,
            rung=batch.rungs[rows] if len(self.ladder) > 1 else None, batch_rung=batch.rungs if len(self.ladder) > 1 else None,
        )  # fmt: skip

    def renoise(self, x0: Tensor, noise: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """(x_t [b, ...], timestep [b]): detached samples with `noise` at the levels `sigma` [b]."""
        timestep = self.schedule.timestep(sigma)
        return self.schedule.level(timestep).add_noise(x0.detach(), noise), timestep

    def _fake_x0(self, x_t: Tensor, timestep: Tensor, condition: Condition, outcome: int) -> Tensor:
        self.roles.fake_score.outcome = outcome
        try:
            return self._x0(self.roles.fake_score, x_t, timestep, condition)
        finally:
            self.roles.fake_score.outcome = NONE

    def _x0(self, role: Role, x_t: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        output = self.caller.call(role, x_t, timestep, condition)
        return self.schedule.to_x0(output, x_t, self.schedule.level(timestep))

    def _teacher_pair(self, x_t: Tensor, timestep: Tensor, condition: Condition, labels: Tensor) -> list[Tensor]:
        """The teacher's conditional and unconditional x0 [b, ...], from one call of twice the batch."""
        uncond = self.backbone.conditions.uncond(self.on_device(labels))
        outputs = pair(self.caller, self.roles.teacher, x_t, timestep, condition, uncond)
        return [self.schedule.to_x0(output, x_t, self.schedule.level(timestep)) for output in outputs]
