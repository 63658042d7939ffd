"""Signals that few objectives need, each with calls of its own: transitions, the student's second look, the teacher's path."""

from __future__ import annotations

import torch
from torch import Tensor

from amd_plugin.host.training.batch import Batch
from amd_plugin.host.training.forward import Forward
from amd_plugin.maths.rivals import path_step, path_target, transition_log_density
from amd_plugin.maths.signals import Signals
from amd_plugin.models.family import guided


def with_extra_signals(forward: Forward, signals: Signals, batch: Batch, rows: slice) -> Signals:
    """`signals` with those further ones that the objective needs.

    Args:
        forward: the forward passes of the run.
        signals: the signals of a micro-batch.
        batch: the joined batch.
        rows: the rows of the micro-batch.
    """
    needs = forward.objective.needs
    if needs.transition_density:
        signals = signals._replace(log_density=_log_density(forward, batch, rows))
    if needs.student_prediction:
        signals = signals._replace(student=_second_look(forward, signals.x0, batch, rows))
    if needs.teacher_path is not None and batch.exit_rung == 0:
        signals = signals._replace(anchor=_anchor(forward, batch, rows, *needs.teacher_path))
    return signals


def _log_density(forward: Forward, batch: Batch, rows: slice) -> Tensor:
    """The log-density [b] of one of the transitions to the exit rung, drawn by chance, times their number; 0 if there are none.

    Times their number, its gradient is that of the whole path in expectation.
    """
    rung, count = batch.exit_rung, rows.stop - rows.start
    if not rung:
        return torch.zeros(count, device=batch.device)
    student, ladder, condition = forward.roles.student, forward.ladder, forward.condition(batch.labels[rows])

    def predict(x_t: Tensor, timestep: Tensor) -> Tensor:
        return forward.caller.call(student, x_t, timestep, condition)

    with torch.no_grad():
        path = ladder.path(predict, batch.normal("rung 0")[rows], batch.generators("rung", rows), rung)
    chosen = int(torch.randint(rung, (), generator=batch.generator("transition"), device=batch.device))
    output = predict(path[chosen], ladder.timesteps[chosen].expand(count))
    predicted = forward.schedule.to_x0(output, path[chosen], ladder.level(chosen, count))
    return rung * transition_log_density(path[chosen + 1], predicted, ladder.level(chosen + 1, count))


def _second_look(forward: Forward, x0: Tensor, batch: Batch, rows: slice) -> Tensor:
    """The student's prediction [b, ...] from its samples `x0`, re-noised to their exit rung; with its graph."""
    x_t = forward.ladder.levels_at(batch.rungs[rows]).add_noise(x0.detach(), batch.normal("second look")[rows])
    return forward.leave(x_t, batch, rows, grad=True).x0


@torch.no_grad()
def _anchor(forward: Forward, batch: Batch, rows: slice, taken: int, steps: int) -> Tensor:
    """The x0 [b, ...] that the teacher's path from the first rung's input points to, after `taken` of its `steps`."""
    ladder, schedule, labels = forward.ladder, forward.schedule, batch.labels[rows]
    condition, uncond = forward.condition(labels), forward.backbone.conditions.uncond(forward.on_device(labels))
    level = entered = ladder.level(0, len(labels))
    start = batch.normal("rung 0")[rows]
    start = level.add_noise(batch.real[rows], start) if forward.from_data else start
    highest = schedule.above(ladder.timesteps[0].double())
    x, timestep = start, ladder.timesteps[0]
    for step in range(1, taken + 1):
        times, teacher, scale = timestep.expand(len(labels)), forward.roles.teacher, forward.objective.guidance_scale
        output = guided(forward.caller, teacher, x, times, condition, uncond, scale)
        timestep = schedule.timestep((highest * (1 - step / steps)).float())
        following = schedule.level(timestep.expand(len(labels)))
        x, level = path_step(x, schedule.to_x0(output, x, level), level, following), following
    return path_target(start, x, entered, level)
