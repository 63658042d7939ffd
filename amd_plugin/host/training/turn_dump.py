"""An update on disk: weights, inputs and all that it computed, as safetensors and JSON, for ``amd-plugin replay``.

The layout is a checkpoint's, without optimizers, which an update that is not applied does not need.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor

import amd_plugin
from amd_plugin import plugin_files
from amd_plugin.host import checkpoint
from amd_plugin.host.checkpoint.files import State
from amd_plugin.host.training.batch import Batch
from amd_plugin.host.training.forward import Exit
from amd_plugin.host.training.turn import Trace, Turn

if TYPE_CHECKING:
    from amd_plugin.host.training.trainer import Trainer

ROLES = ("student", "fake_score", "discriminator", "memory")


class DumpState(State):
    """What state.json of a dump holds.

    Attributes:
        recipe: the resolved recipe.
        role: the role that was updated.
        batch: see `Batch.state`.
        size: number of samples in a micro-batch.
        processes: number of processes.
        objective: the objective's state before the update.
        schedule_factor: `Objective.schedule_factor`.
        findings: what was not finite.
    """

    recipe: dict[str, Any]
    role: str
    batch: dict[str, Any]
    size: int
    processes: int
    objective: Any
    schedule_factor: float
    findings: list[Any]


class Dump(NamedTuple):
    """A dump as it was read.

    Attributes:
        state: see `DumpState`.
        weights: name of a part of the trainer -> its state.
        inputs, computed: tensors of the joined batch, by name.
    """

    state: DumpState
    weights: dict[str, Any]
    inputs: dict[str, Tensor]
    computed: dict[str, Tensor]


def place(folder: Path, turn: Turn) -> Path:
    """The folder of a dump of `turn` below `folder`."""
    return folder / checkpoint.name_of(turn.batch.step)


def write(
    folder: Path, trainer: Trainer, turn: Turn, trace: Trace, findings: Sequence[Any], objective: dict[str, Any]
) -> str:  # fmt: skip
    """Writes an update below `folder`; returns a sentence about it, the same on every process. Call on every process."""
    batch, tensors = turn.batch.state()
    inputs = {name: value for name, value in tensors.items() if value.numel()}
    joined = {"x0": torch.cat([exit.x0.detach() for exit in turn.exits])}
    if turn.role == "student":
        joined["x"] = torch.cat([exit.x.detach() for exit in turn.exits])
    inputs |= {name: trainer.accelerator.gather(value.contiguous()) for name, value in joined.items()}
    inputs |= {name: value for name in ("advantage", "sigma", "weight", "outcome", "factors")
               if (value := getattr(turn, name)) is not None}  # fmt: skip
    computed = {name: trainer.accelerator.gather(torch.cat([part[name] for part in trace]).contiguous()) for name in trace[0]}
    state = {
        "recipe": trainer.recipe.as_dict(), "role": turn.role, "batch": batch, "size": turn.parts[0].stop - turn.parts[0].start,
        "processes": trainer.accelerator.num_processes, "objective": objective,
        "schedule_factor": trainer.objective.schedule_factor, "findings": list(findings),
    }  # fmt: skip
    weights = {name: part.state_dict() for name, part in trainer.state().items() if name in ROLES}
    outcome = [""]
    try:
        path = checkpoint.save(
            folder, turn.batch.step, {**weights, "inputs": inputs, "computed": computed}, state, keep=10**6,
            writes=trainer.accelerator.is_main_process, about={"amd_plugin": amd_plugin.__version__}, finite=False,
        )  # fmt: skip
        outcome[0] = f"Look at it with: {plugin_files.command('replay', path)}"
    except OSError as error:  # the run's end, or its going on, matters more
        outcome[0] = f"It could not be dumped: {error}"
    broadcast_object_list(outcome)
    return outcome[0]


def read(path: Path) -> Dump:
    """The dump in the folder `path`; raises InputError where it cannot be read."""
    tensors, values = checkpoint.load(path, kind=DumpState, needed=("inputs", "computed"))
    weights = {name: tensors[name] for name in ROLES if name in tensors}
    return Dump(DumpState.model_validate({"rest": {}, **values}), weights, tensors["inputs"], tensors["computed"])


def turn_of(dump: Dump, trainer: Trainer) -> Turn:
    """The update in `dump`, for a trainer of one process."""
    state, inputs = dump.state, {name: value.to(trainer.accelerator.device) for name, value in dump.inputs.items()}
    source = trainer.rollouts.source
    tensors = {**inputs, "rungs": dump.inputs["rungs"], "real": inputs.get("real", torch.empty(0))}
    batch = Batch.restored(source, state.batch, tensors)
    parts = [slice(start, start + state.size) for start in range(0, len(batch.labels), state.size)]
    exits = [Exit(inputs.get("x", inputs["x0"])[rows], inputs["x0"][rows]) for rows in parts]
    rest = {name: inputs.get(name) for name in ("advantage", "weight", "outcome", "factors")}
    return Turn(state.role, batch, parts, exits, sigma=inputs["sigma"], **rest)
