"""One update as a value: everything that it is made of beside the weights, so that it can be made again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from amd_plugin.hookspecs import Objective
from amd_plugin.host.training.batch import Batch
from amd_plugin.host.training.forward import Exit
from amd_plugin.maths.signals import Signals

# In the order in which they are computed: the first one that is not finite is where to look.
STAGES = (
    "weights", "sample", "reward", "teacher output", "fake score output", "direction", "loss", "gradient",
)  # fmt: skip
_FIELDS = {
    "sample": ("x0", "student", "log_density", "real"),
    "reward": ("advantage", "reward", "weight"),
    "teacher output": ("real_cond", "real_uncond", "guide_cond", "guide_uncond", "anchor"),
    "fake score output": ("fake", "fake_bad", "fake_good", "prediction"),
    "direction": ("direction",),
    "loss": ("loss",),
}
STAGE_OF = {field: stage for stage, fields in _FIELDS.items() for field in fields}


class Turn(NamedTuple):
    """One update of a role.

    Attributes:
        role: ``student``, ``fake_score`` or ``discriminator``.
        batch: the joined batch of B samples.
        parts: this process's rows, by micro-batch.
        exits: this process's samples with the inputs that gave them, by micro-batch.
        advantage: the advantages [B]; None for an objective without rewards.
        sigma: the noise levels [B].
        weight: the weights [B] of the fake score's loss; None for equal ones.
        outcome: the outcomes [B] that the fake score is trained with; None for none.
        factors: the factors [B] of advantage guidance; None for 1 everywhere.
    """

    role: str
    batch: Batch
    parts: list[slice]
    exits: list[Exit]
    advantage: Tensor | None
    sigma: Tensor
    weight: Tensor | None = None
    outcome: Tensor | None = None
    factors: Tensor | None = None


Trace = list[dict[str, Tensor]]  # of each micro-batch: what it computed, name -> [b, ...], see STAGE_OF


def traced(values: Mapping[str, Any]) -> dict[str, Tensor]:
    """Those of `values` that a trace has, without their graphs."""
    return {name: value.detach() for name, value in values.items() if name in STAGE_OF and isinstance(value, Tensor)}


def without_graph(signals: Signals) -> Signals:
    """`signals` as they are, without what is needed for gradients."""
    return signals._replace(**{name: v.detach() for name, v in signals._asdict().items() if isinstance(v, Tensor)})


def with_directions(objective: Objective, signals: Sequence[Signals], trace: Trace) -> Trace:
    """The student's `trace` with the direction [b, ...] in which each micro-batch moves its samples.

    It is minus the gradient of the objective's loss, for each sample: what any objective has. Changes the objective's state.
    """
    return [
        {**part, **({} if (moved := _direction(objective, of_part)) is None else {"direction": moved})}
        for of_part, part in zip(signals, trace, strict=True)
    ]


def _direction(objective: Objective, signals: Signals) -> Tensor | None:
    x0 = signals.x0.detach().requires_grad_()
    try:
        with torch.enable_grad():
            loss = objective.student_loss(signals._replace(x0=x0)).loss
            (slope,) = torch.autograd.grad(loss, x0)
    except (RuntimeError, ValueError):  # the loss does not depend on the samples themselves
        return None
    return -slope * x0.numel()
