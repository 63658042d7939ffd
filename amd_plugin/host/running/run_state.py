"""Checkpoints of a whole run: what a trainer, its objective and its plugins need to go on, written and taken back.

Where each process keeps a share of the trained weights, all of them save and load together; else the main process saves.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list

from amd_plugin.errors import InputError, OptionError, RunError
from amd_plugin.host import checkpoint
from amd_plugin.host.running.rank_probe import RollCall
from amd_plugin.host.running.run_folder import differences
from amd_plugin.host.running.run_log import RunLog
from amd_plugin.host.training.trainer import Trainer
from amd_plugin.models.step_conditioning import check_rungs


def save(trainer: Trainer, run_log: RunLog, output: Path) -> Path:
    """Writes a checkpoint; call on every process: all of them wait until it is there.

    Raises:
        RunError: on every process, where the first cannot write it.
    """
    outcome, cause = [""], None
    try:
        _write(trainer, run_log, output)
    except RuntimeError:  # of communication: there is nobody to tell
        raise
    except Exception as error:
        outcome, cause = [f"{type(error).__name__}: {error}"], error
    broadcast_object_list(outcome)
    if outcome[0]:
        raise RunError(f"the checkpoint of step {trainer.step} cannot be written: {outcome[0]}") from cause
    return _checkpoint(trainer, output)


def rescue(trainer: Trainer, run_log: RunLog, output: Path, roll_call: RollCall) -> str:
    """Saves what an interrupted cycle left, unless the checkpoint of its beginning, which is exact, is there already."""
    where, done = _checkpoint(trainer, output), [False]
    if trainer.has_shares and not roll_call.complete():
        return "without all processes there is nothing to be saved; --resume auto goes on from the newest checkpoint"
    if not (trainer.accelerator.is_main_process or trainer.has_shares):
        return f"process 0 saves {where}, if it can"
    try:
        done[0] = where.exists()
        if trainer.has_shares:
            broadcast_object_list(done)
        if not done[0]:
            _write(trainer, run_log, output)
        return f"saved {where}; --resume auto repeats the step"
    except Exception as error:
        return f"it could not be saved: {type(error).__name__}: {error}"


def restore(trainer: Trainer, path: Path) -> dict[str, float]:
    """Brings `trainer` to where the checkpoint was written; returns the metrics last logged then."""
    tensors, state = checkpoint.load(path, later=trainer.has_shares)
    changed = differences(state["recipe"], trainer.recipe.as_dict())
    if changed:
        raise InputError(f"checkpoint {path}: is of another recipe. Undo:\n  " + "\n  ".join(changed))
    if state["step"] > trainer.train.max_steps:
        raise InputError(f"checkpoint {path}: is of step {state['step']}, beyond train.max_steps {trainer.train.max_steps}")
    try:
        check_rungs(tensors["fake_score"], trainer.fake_score.network)
    except OptionError as error:
        raise InputError(f"checkpoint {path}: model.{error}") from error
    for name, part in trainer.state().items():
        stored = tensors[name]
        part.load_state_dict(stored if trainer.has_shares else checkpoint.tensors_on(stored, trainer.accelerator.device))
    trainer.objective.load_state_dict(state["objective"])
    trainer.plugins.hook.distill_load_state_dict(state=state["plugins"])
    if trainer.scoring is not None:
        trainer.scoring.load_state_dict(state.get("failed_rewards", {}))
    trainer.alarm.load_state_dict(state.get("evaluations", []))
    trainer.step = state["step"]
    last_metrics: dict[str, float] = state["last_metrics"]
    return last_metrics


def _write(trainer: Trainer, run_log: RunLog, output: Path) -> None:
    """The main process's part of a checkpoint, and that of the others where each has a share of the weights."""
    main = trainer.accelerator.is_main_process
    if not (main or trainer.has_shares):
        return
    state, failed = {}, None
    try:
        state = _state(trainer, run_log) if main else {}
    except Exception as error:  # the others put weights together with this process all the same
        failed = error
    tensors = {name: part.state_dict() for name, part in trainer.state().items()}
    folder, keep = output / "checkpoints", trainer.train.keep_checkpoints
    checkpoint.save(folder, trainer.step, tensors, state, keep, writes=main and failed is None)
    if failed is not None:
        raise failed


def _state(trainer: Trainer, run_log: RunLog) -> dict[str, Any]:
    return {
        "objective": trainer.objective.state_dict(),
        "plugins": dict(trainer.plugins.hook.distill_state_dict()),
        "recipe": trainer.recipe.as_dict(),
        "last_metrics": run_log.last,
        "evaluations": trainer.alarm.state_dict(),
        "failed_rewards": {} if trainer.scoring is None else trainer.scoring.state_dict(),
    }


def _checkpoint(trainer: Trainer, output: Path) -> Path:
    return output / "checkpoints" / f"step-{trainer.step:06d}"
