"""Checkpoints of a whole run: the state of a trainer, its objective, its plugins and its evaluations, written and restored.

Where each process holds a share of the trained weights, all of them save and load together; else the main process saves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list

import amd_plugin
from amd_plugin.errors import InputError, OptionError, RunError
from amd_plugin.host import checkpoint
from amd_plugin.host.running.rank_probe import RankProbe
from amd_plugin.host.running.run_folder import differences
from amd_plugin.host.training.trainer import Trainer
from amd_plugin.models.step_conditioning import check_tables

Evaluations = Sequence[Mapping[str, float]]


def save(trainer: Trainer, last_metrics: Mapping[str, float], evaluations: Evaluations, output: Path) -> Path:
    """Writes a checkpoint and returns its folder. Call on every process: all of them wait until it is there.

    Args:
        trainer: the trainer between two cycles.
        last_metrics: metrics last logged, for hooks that read them.
        evaluations: history of the hacking alarm.
        output: the run's folder.

    Raises:
        RunError: on every process, where the main process cannot write it.
    """
    outcome, cause = [""], None
    try:
        _write(trainer, last_metrics, evaluations, output)
    except RuntimeError:  # communication failed, so the other processes cannot be reached
        raise
    except Exception as error:
        outcome, cause = [f"{type(error).__name__}: {error}"], error
    broadcast_object_list(outcome)
    if outcome[0]:
        raise RunError(f"the checkpoint of step {trainer.step} cannot be written: {outcome[0]}") from cause
    return _checkpoint(trainer, output)


def rescue(
    trainer: Trainer, last_metrics: Mapping[str, float], evaluations: Evaluations, output: Path, probe: RankProbe
) -> str:
    """Saves the state that an interrupted cycle left; returns a sentence for the user about the outcome.

    A checkpoint of the cycle's beginning is exact, and is kept where there is one.
    """
    path, exists = _checkpoint(trainer, output), [False]
    if trainer.has_shares and not probe.complete():
        return "without all processes there is nothing to be saved; --resume auto goes on from the newest checkpoint"
    if not (trainer.accelerator.is_main_process or trainer.has_shares):
        return f"process 0 saves {path}, if it can"
    try:
        exists[0] = path.exists()
        if trainer.has_shares:
            broadcast_object_list(exists)
        if not exists[0]:
            _write(trainer, last_metrics, evaluations, output)
        return f"saved {path}; --resume auto repeats the step"
    except Exception as error:
        return f"it could not be saved: {type(error).__name__}: {error}"


def restore(trainer: Trainer, path: Path) -> tuple[dict[str, float], Evaluations]:
    """Sets `trainer` to the state of the checkpoint `path`; returns (metrics last logged, history of the hacking alarm).

    Raises:
        InputError: for a checkpoint that cannot be read or does not fit the recipe.
    """
    tensors, state = checkpoint.load(path, lazy=trainer.has_shares)
    changed = trainer.recipe.differs(state["recipe"], differences)
    if changed:
        raise InputError(f"checkpoint {path}: is of another recipe. Undo:\n  " + "\n  ".join(changed))
    if state["step"] > trainer.train.max_steps:
        raise InputError(f"checkpoint {path}: is of step {state['step']}, beyond train.max_steps {trainer.train.max_steps}")
    try:
        check_tables(tensors["fake_score"], trainer.fake_score.network)
    except OptionError as error:
        raise InputError(f"checkpoint {path}: {error}") from error
    for name, part in trainer.state().items():
        stored = tensors[name]
        part.load_state_dict(stored if trainer.has_shares else checkpoint.tensors_on(stored, trainer.accelerator.device))
    trainer.objective.load_state_dict(state["objective"])
    trainer.plugins.hook.distill_load_state_dict(state=state["plugins"])
    if trainer.scoring is not None:
        trainer.scoring.load_state_dict(state.get("failed_rewards", {}))
    trainer.step = state["step"]
    return state["last_metrics"], state.get("evaluations", [])


def _write(trainer: Trainer, last_metrics: Mapping[str, float], evaluations: Evaluations, output: Path) -> None:
    """Writes on the main process; the others take part where each holds a share of the weights."""
    main = trainer.accelerator.is_main_process
    if not (main or trainer.has_shares):
        return
    state: dict[str, Any] = {}
    failure: Exception | None = None
    try:
        state = _state(trainer, last_metrics, evaluations) if main else {}
    except Exception as error:  # the other processes gather weights with this one all the same
        failure = error
    tensors = {name: part.state_dict() for name, part in trainer.state().items()}
    folder, keep = output / "checkpoints", trainer.train.keep_checkpoints
    about = {"recipe": trainer.recipe.name, "amd_plugin": amd_plugin.__version__}
    checkpoint.save(folder, trainer.step, tensors, state, keep, writes=main and failure is None, about=about)
    if failure is not None:
        raise failure


def _state(trainer: Trainer, last_metrics: Mapping[str, float], evaluations: Evaluations) -> dict[str, Any]:
    return {
        "objective": trainer.objective.state_dict(),
        "plugins": dict(trainer.plugins.hook.distill_state_dict()),
        "recipe": trainer.recipe.as_dict(),
        "last_metrics": dict(last_metrics),
        "evaluations": list(evaluations),
        "failed_rewards": {} if trainer.scoring is None else trainer.scoring.state_dict(),
    }


def _checkpoint(trainer: Trainer, output: Path) -> Path:
    return output / "checkpoints" / f"step-{trainer.step:06d}"
