"""Checkpoints of a whole run: the state of a trainer, its objective, its plugins and its evaluations, written and restored.

Where each process holds a share of the trained weights, all of them save and load together; else the main process saves.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from accelerate.utils import broadcast_object_list

import amd_plugin
from amd_plugin import disk
from amd_plugin.errors import InputError, OptionError, RunError, in_words, unreadable_is_input_error
from amd_plugin.host import checkpoint
from amd_plugin.host.checkpoint.files import ADVICE
from amd_plugin.host.running.rank_probe import RankProbe, of_communication
from amd_plugin.host.running.recipe_changes import changes_before_going_on, differences
from amd_plugin.host.running.run_log import Line, LogState
from amd_plugin.host.running.state_schema import RunState
from amd_plugin.host.training.trainer import Trainer
from amd_plugin.interrupts import Interrupted
from amd_plugin.models.step_conditioning import check_tables
from amd_plugin.recipe.inputs import EVALUATE, changed_inputs

log = logging.getLogger(__name__)


class Progress(NamedTuple):
    """What a checkpoint holds of a run beside its trainer, see `RunState`."""

    log: LogState
    evaluations: list[Line]
    evaluated: Line | None


def save(trainer: Trainer, progress: Progress, output: Path, settle: Callable[[], None]) -> Path:
    """Writes a checkpoint and returns its folder. Call on every process: all of them wait until it is there.

    Args:
        trainer: the trainer between two cycles.
        progress: the rest of the run.
        output: the run's folder.
        settle: puts the lines on the disk that the checkpoint vouches for, see `RunLog.settle`.

    Raises:
        RunError: on every process, where the main process cannot write it.
    """
    outcome, cause = [""], None
    try:
        _write(trainer, progress, output, settle)
    except (RuntimeError, Interrupted):  # the other processes cannot be reached, or are told to leave as well
        raise
    except BaseException as error:
        outcome, cause = [_in_words(error)], error
    broadcast_object_list(outcome)
    if outcome[0]:
        raise RunError(f"the checkpoint of step {trainer.step} is not saved: {outcome[0]}") from cause
    return _checkpoint(trainer, output)


def rescue(
    trainer: Trainer,
    progress: Callable[[], Progress],
    output: Path,
    settle: Callable[[], None],
    probe: RankProbe,
    *,
    partial: bool,
) -> str:
    """Saves the state of a run that failed; returns a sentence for the user about the outcome.

    A checkpoint of this step is exact, and is kept where there is one. What a cycle has left that failed in its middle is not:
    it goes beside the checkpoints, under a name that says so.

    Args:
        trainer, output, settle: see `save`.
        progress: makes the rest of the run.
        probe: the other processes, as far as they answer.
        partial: whether the state is of no step.
    """
    path, exists = _checkpoint(trainer, output), [False]
    if trainer.has_shares and not probe.complete():
        return "without all processes there is nothing to be saved; a resumed run goes on from the newest checkpoint"
    if not (trainer.accelerator.is_main_process or trainer.has_shares):
        return f"process 0 saves {path}, if it can"
    try:
        exists[0] = path.exists()
        if trainer.has_shares:
            broadcast_object_list(exists)
        if exists[0]:
            return f"saved {path} before; a resumed run repeats the step"
        _write(trainer, progress(), output, settle, partial=partial)
        if not partial:
            return f"saved {path}; a resumed run repeats the step"
        beside = path.with_name(checkpoint.name_of(trainer.step, partial=True))
        goes_on = "a resumed run goes on from a checkpoint between steps, or begins again"
        return f"saved {beside}, with a part of the step; {goes_on}"
    except Interrupted:
        raise
    except BaseException as error:
        whole = checkpoint.available(output / "checkpoints")[-1:]
        rest = f"{whole[0]} is whole, and a resumed run goes on from there" if whole else "there is no checkpoint to go on from"
        return f"it could not be saved: {_in_words(error)}; {rest}"


def restore(trainer: Trainer, path: Path) -> Progress:
    """Sets `trainer` to the state of the checkpoint `path`; returns the rest.

    Raises:
        InputError: for a checkpoint that cannot be read or does not fit the recipe.
    """
    tensors, values = checkpoint.load(path, lazy=trainer.has_shares, kind=RunState)
    state = RunState.model_construct(**values)
    changed = trainer.recipe.differs(state.recipe, differences) + changes_before_going_on(state.inputs, trainer.recipe)
    if changed:
        raise InputError(f"checkpoint {path}: is of another recipe. Undo:\n  " + "\n  ".join(changed))
    others = changed_inputs(state.inputs, trainer.recipe.inputs)
    for key, change in others.items():
        if trainer.accelerator.is_main_process:  # of code, and of the evaluation, which may change
            log.warning("%s has changed since the checkpoint: %s; what follows may be another result", key, change)
    if lost := sorted({*(state.steering or ())} - {*trainer.plugins.steering()}):
        how = "name a file with --plugin, or install it"
        raise InputError(f"checkpoint {path}: its run had {', '.join(lost)}, which moves noise levels or strengths: {how}")
    if state.step > trainer.train.max_steps:
        raise InputError(f"checkpoint {path}: is of step {state.step}, beyond train.max_steps {trainer.train.max_steps}")
    parts = trainer.state()
    if missing := sorted(parts.keys() - tensors.keys()):
        raise InputError(f"checkpoint {path}: holds no {', '.join(missing)}. {ADVICE}")
    try:
        check_tables(tensors["fake_score"], trainer.fake_score.network)
    except OptionError as error:
        raise InputError(f"checkpoint {path}: {error}") from error
    for name, part in parts.items():
        stored = tensors[name]
        with _fitting(path, name):
            part.load_state_dict(stored if trainer.has_shares else checkpoint.tensors_on(stored, trainer.accelerator.device))
    with _fitting(path, "state.json: objective"):
        trainer.objective.load_state_dict(state.objective)
    trainer.plugins.hook.distill_load_state_dict(state=state.plugins)
    if trainer.scoring is not None:
        trainer.scoring.load_state_dict(state.failed_rewards)
    trainer.non_finite.load_state_dict(state.skipped)
    trainer.step = state.step
    log_state = LogState.model_validate(values["log"])
    log_state.last = log_state.last or state.last_metrics
    # Held-out metrics of other settings are not those that this run would have found.
    same = state.recipe.get("evaluate") == trainer.recipe.as_dict()["evaluate"]
    same = same and not any(key.startswith(EVALUATE) for key in others)
    return Progress(log_state, state.evaluations, state.evaluated if same else None)


@contextmanager
def _fitting(path: Path, part: str) -> Iterator[None]:
    """Names the part of a checkpoint that cannot be taken up; failures of communication pass."""
    try:
        with unreadable_is_input_error(f"checkpoint {path}: {part} does not fit this run", f" {ADVICE}"):
            yield
    except InputError as error:
        if error.__cause__ is not None and of_communication(error.__cause__):
            raise error.__cause__ from None
        raise


def _in_words(error: BaseException) -> str:
    refused = disk.refusal(error)
    return in_words(error) if refused is None else disk.in_words(refused)


def _write(trainer: Trainer, progress: Progress, output: Path, settle: Callable[[], None], *, partial: bool = False) -> None:
    """Writes on the main process; the others take part where each holds a share of the weights."""
    main = trainer.accelerator.is_main_process
    if not (main or trainer.has_shares):
        return
    state: dict[str, Any] = {}
    failure: BaseException | None = None
    try:
        settle()
        state = _state(trainer, progress) if main else {}
    except Interrupted:
        raise
    except BaseException as error:  # the other processes gather weights with this one all the same
        failure = error
    tensors = {name: part.state_dict() for name, part in trainer.state().items()}
    folder, keep = output / "checkpoints", trainer.train.keep_checkpoints
    about = {"recipe": trainer.recipe.name, "amd_plugin": amd_plugin.__version__}
    checkpoint.save(folder, trainer.step, tensors, state, keep, writes=main and failure is None, about=about, partial=partial)
    if failure is not None:
        raise failure


def _state(trainer: Trainer, progress: Progress) -> dict[str, Any]:
    return {
        "recipe": trainer.recipe.as_dict(),
        "name": trainer.recipe.name,
        "overrides": list(trainer.recipe.overrides),
        "inputs": trainer.recipe.inputs,
        "objective": trainer.objective.state_dict(),
        "plugins": dict(trainer.plugins.hook.distill_state_dict()),
        "steering": trainer.plugins.steering(),
        "evaluations": list(progress.evaluations),
        "evaluated": progress.evaluated,
        "failed_rewards": {} if trainer.scoring is None else trainer.scoring.state_dict(),
        "skipped": trainer.non_finite.state_dict(),
        "log": progress.log.model_dump(),
    }


def _checkpoint(trainer: Trainer, output: Path) -> Path:
    return output / "checkpoints" / checkpoint.name_of(trainer.step)
