"""The folder of a run: whether a run may use it, and the checkpoint it continues from.

What describes the run, config.yaml and run.json, is written anew from the newest checkpoint where it is lost or damaged.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

import amd_plugin
from amd_plugin import plugin_files
from amd_plugin.atomic import is_draft, sweep, write_text
from amd_plugin.config import RecipeConfig
from amd_plugin.disk import output_refused
from amd_plugin.errors import InputError
from amd_plugin.host import checkpoint
from amd_plugin.host.checkpoint.files import ADVICE, PARTIAL, State
from amd_plugin.host.running.folder_kind import check_run, is_run
from amd_plugin.host.running.folder_lock import FolderLock, is_lock
from amd_plugin.host.running.student_files import check_replaceable
from amd_plugin.json_files import read
from amd_plugin.plugins import PluginManager
from amd_plugin.recipe.inputs import CODE, EVALUATE, changed_inputs
from amd_plugin.recipe.loading import Recipe, load, read_config
from amd_plugin.recipe.yaml_source import Source

# Keys that a user may change on purpose between a run and its continuation.
MAY_CHANGE = {
    "train": (
        "max_steps", "log_every", "evaluate_every", "checkpoint_every", "keep_checkpoints", "trackers", "project", "run_name",
        "accumulation", "max_failed_rewards", "failed_rewards_window", "stop_on_hacking", "on_nonfinite", "max_skipped",
    ),
    "rewards": ("on_error", "timeout", "device", "offload", "pool"),
    "evaluate": ("samples", "held_out", "rewards", "features", "fps"),
    "distributed": ("mixed_precision", "device", "teacher", "trained", "timeout"),
    # The checkpoint itself shows whether rung conditioning fits; the other only silences a check.
    "model": ("rung_conditioning", "distilled_teacher"),
}  # fmt: skip

SECTIONS = {"model", "data", "objective", "train"}

PACKAGES = ("amd-plugin", "torch", "diffusers", "transformers", "peft", "accelerate")

# Keys that no metric of a finished run depends on.
NO_RESULT_DEPENDS_ON = {
    "train": (
        "log_every", "evaluate_every", "checkpoint_every", "keep_checkpoints", "trackers", "project", "run_name",
        "stop_on_hacking", "on_nonfinite", "max_skipped",
    ),
    "rewards": ("offload", "pool"),
    "evaluate": ("features", "fps"),
    "model": ("distilled_teacher",),
}  # fmt: skip


log = logging.getLogger(__name__)


class About(BaseModel):
    """The content of run.json.

    Attributes:
        recipe, objective: their names.
        overrides: overrides ``a.b=value`` that were applied to the recipe's file.
        command: command line.
        started: time of the last start.
        versions: package -> version.
        commit: git commit of this package's source; empty where it is installed.
        start: the checkpoint of another run that this one began from, until it has one of its own; empty for none.
        inputs: what it depends on beside its recipe, see `amd_plugin.recipe.inputs`; None in runs of earlier versions.
    """

    recipe: str
    objective: str
    overrides: tuple[str, ...] = ()
    command: str = ""
    started: str = ""
    versions: dict[str, str] = {}
    commit: str = ""
    start: str = ""
    inputs: dict[str, str] | None = None


class Described(State):
    """What state.json of a checkpoint says of its run."""

    recipe: dict[str, Any]
    name: str = ""
    overrides: tuple[str, ...] = ()
    inputs: dict[str, str] | None = None


def open_folder(output: Path, recipe: Recipe, lock: FolderLock, step: int = 0, start: Path | None = None) -> None:
    """Creates the run's folder, or prepares it for the continuation of its run; takes its `lock` in any case.

    Args:
        output: the folder.
        recipe: the recipe of the run.
        lock: the lock of the folder, which is held already if there was a run when this one was begun.
        step: the step from which the run goes on.
        start: the checkpoint from which it goes on, where that is another run's.

    Raises:
        InputError: where it cannot be written, or another process works in it, or has begun a run there meanwhile.
    """
    try:
        new = not lock.held
        output.mkdir(parents=True, exist_ok=True)
        lock.acquire()
        if new and is_run(output):  # it may have ended since, and this one was prepared for an empty folder
            raise InputError(f"--output {output}: another process has begun a run there meanwhile. Choose another folder")
        tidy(output)
        if moved := checkpoint.set_aside(output / "checkpoints", step):
            names = ", ".join(path.name for path in moved)
            log.warning("%s: of steps beyond %d, from which the run goes on; moved to %s", names, step, moved[0].parent)
        if not new:  # a run that was killed before it had removed old ones may have no other to save
            checkpoint.prune(output / "checkpoints", step, recipe.config.train.keep_checkpoints)
        # Results of an earlier end are not the results of this run.
        (output / "evaluation.json").unlink(missing_ok=True)
        # config.yaml makes the folder a run's, so that it comes last.
        write_json(
            output / "run.json",
            {
                "recipe": recipe.name,
                "objective": recipe.config.objective.name,
                "overrides": list(recipe.overrides),
                "command": command_line(),
                "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                "versions": {name: version(name) for name in PACKAGES},
                "commit": _commit(),
                "start": "" if start is None else str(start.resolve()),
                "inputs": recipe.inputs,
            },
        )
        write_text(output / "config.yaml", recipe.as_yaml())
        (output / "samples").mkdir(exist_ok=True)
    except OSError as error:
        raise output_refused(error) from error


def tidy(output: Path) -> None:
    """Removes what processes that were killed left half written in a run's folder, whose lock must be held.

    Checkpoints and samples are written under the lock alone. An export or a report may be at work beside it.
    """
    for folder in (output / "samples", output / "checkpoints"):
        sweep(folder, alone=True)
    sweep(output)


def command_line() -> str:
    """The command of this process, as it would be typed again."""
    name = Path(sys.argv[0]).name
    return shlex.join(["amd-plugin" if name == "__main__.py" else name, *sys.argv[1:]])


def find_checkpoint(output: Path, recipe: Recipe, resume: str | None) -> Path | None:
    """The checkpoint that a run of `recipe` in `output` would start from; None for a run from the beginning. Writes nothing.

    Raises:
        InputError: if the folder holds something else, or `resume` cannot be used.
    """
    if output.exists() and not output.is_dir():
        raise InputError(f"--output {output}: is a file")
    existing = next(folder for folder in (output, *output.absolute().parents) if folder.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise InputError(f"--output {output}: cannot be written: {existing} is no folder that may be written to")
    if is_run(output):
        check_recipe(output, recipe)
        check_replaceable(output / "student")  # now, and not after hours, since the run's end replaces it
        if resume is None:
            command = plugin_files.command("train", "--resume", output)
            raise InputError(f"--output {output}: holds a run already. Go on with {command}, or choose another folder")
    elif output.is_dir() and any(not _is_beginning(entry) for entry in output.iterdir()):
        raise InputError(f"--output {output}: is not empty and holds no run. Choose another folder")
    if resume is None:
        return None
    if resume != "auto":
        checkpoint.verify(Path(resume))
        return Path(resume)
    folder = output / "checkpoints"
    newest, rescued = checkpoint.newest(folder), checkpoint.partials(folder)
    if newest is None and {*folder.glob("step-*")} - {*rescued}:
        raise InputError(f"{folder}: none of the checkpoints can be used; see the warnings above")
    for path in rescued[-1:]:
        try:
            checkpoint.verify(path)
        except InputError as error:
            log.warning("%s; it is left out", str(error).removesuffix(f". {ADVICE}"))
            continue
        exact = "beginning again" if newest is None else f"going on from {newest.name}"
        step = checkpoint.step_of(path.with_name(path.name.removesuffix(PARTIAL)))
        log.warning(
            "%s holds a part of a step that failed; %s, which is exact and repeats %d steps. %s repeats less, and what "
            "follows is not to the bit what an undisturbed run would give",
            path, exact, step - (0 if newest is None else checkpoint.step_of(newest)),
            plugin_files.command("train", "--resume", path),
        )  # fmt: skip
    return newest or _first_start(output)


def _first_start(output: Path) -> Path | None:
    """The checkpoint of another run that the one in `output` began from; None for a run from the beginning."""
    if not (output / "run.json").is_file() or not (start := about(output).start):
        return None
    try:
        checkpoint.verify(Path(start))
    except InputError as error:
        problem = str(error).removesuffix(f". {ADVICE}")
        choice = f"Name another with --resume CHECKPOINT, or delete {output}, and start again"
        raise InputError(f"--resume auto: the run began from another's, which cannot be used: {problem}. {choice}") from error
    return Path(start)


def check_recipe(output: Path, recipe: Recipe) -> None:
    """Refuses a `recipe` with which the run in `output` cannot go on; writes its config.yaml anew where that is damaged.

    Raises:
        InputError: with the keys that differ and may not.
    """
    repair(output)
    changed = recipe.differs(_saved(output / "config.yaml"), differences)
    changed += changes_before_going_on(about(output).inputs, recipe)
    if changed:
        raise InputError(f"{output}: holds a run of another recipe. Choose another folder, or undo:\n  " + "\n  ".join(changed))


def _is_beginning(entry: Path) -> bool:
    """Whether a run that was killed before it had a config.yaml may have left this."""
    return is_lock(entry) or is_draft(entry) or entry.name == "run.json"


def repair(output: Path) -> None:
    """Writes config.yaml and run.json of a run anew where they are lost or damaged, from its newest checkpoint, and says so.

    Raises:
        InputError: where there is no checkpoint to write them from.
    """
    config, about = output / "config.yaml", output / "run.json"
    broken = {}
    for path, check in ((config, _saved), (about, _about)):
        try:
            check(path)
        except InputError as error:
            broken[path] = str(error)
    if not broken:
        return
    source = checkpoint.newest(output / "checkpoints")
    if source is None and config in broken:
        raise InputError(f"{broken[config]}. There is no checkpoint to write it from: delete {output}, and start again")
    saved = {"recipe": _saved(config)} if source is None else checkpoint.read_state(source, Described)
    recipe = _whole(saved["recipe"], f"{source}: the recipe in state.json")
    contents = {
        config: yaml.safe_dump(recipe, sort_keys=False),
        about: json.dumps(
            {"recipe": saved.get("name") or output.name, "objective": str(recipe["objective"].get("name")),
             "overrides": list(saved.get("overrides", ())), "inputs": saved.get("inputs")}, indent=1,
        ),
    }  # fmt: skip
    for path, problem in broken.items():
        write_text(path, contents[path])
        log.warning("%s; it was written anew from %s", problem, config if source is None else source)


def about(output: Path) -> About:
    """What run.json says of the run in `output`; raises InputError where it cannot be read."""
    return _about(output / "run.json")


def saved_config(output: Path) -> RecipeConfig:
    """The recipe in config.yaml of the run in `output`; raises InputError without one that can be used."""
    check_run(output)
    return read_config(output / "config.yaml")


def find_run(output: Path, plugins: PluginManager, overrides: Sequence[str] = (), objective: str | None = None) -> Recipe:
    """The recipe of the run in the folder `output`, with further `overrides` and another `objective` as in `load`.

    Raises:
        InputError: where there is no run, or it cannot be read.
    """
    check_run(output)
    repair(output)
    recipe = load(str(output / "config.yaml"), plugins, overrides, objective)
    known = about(output)
    recipe.name, recipe.overrides = known.recipe, (*known.overrides, *recipe.overrides)
    return recipe


def differences(old: Any, new: Any, may_change: Mapping[str, tuple[str, ...]] = MAY_CHANGE, path: str = "") -> list[str]:
    """Lines ``key: old -> new`` for all keys of two recipes that differ and are not in `may_change`.

    Args:
        old, new: recipes as plain values, or parts of them.
        may_change: section -> keys that may differ.
        path: prefix of the keys, with a dot at its end.
    """
    if isinstance(old, dict) and isinstance(new, dict):
        section = path.rstrip(".")
        keys = [key for key in sorted({*old, *new}) if key not in may_change.get(section, ())]
        return [line for key in keys for line in differences(old.get(key), new.get(key), may_change, f"{path}{key}.")]
    if isinstance(old, list) and isinstance(new, list) and path == "rewards." and len(old) == len(new):
        # Rewards are matched by their position, and share the keys that may change.
        parts = [differences(a, b, {f"rewards.{i}": may_change.get("rewards", ())}, f"rewards.{i}.") for i, (a, b) in
                 enumerate(zip(old, new, strict=True))]  # fmt: skip
        return [line for part in parts for line in part]
    return [] if old == new else [f"{path.rstrip('.')}: {old} -> {new}"]


def write_json(path: Path, content: Any) -> None:
    """Writes `content`, indented, for people and programs to read."""
    write_text(path, json.dumps(content, indent=1))


def results(output: Path) -> dict[str, float] | None:
    """The held-out metrics of the run in `output`; None where it is not complete, or the file is damaged, with a warning."""
    if not (output / "evaluation.json").is_file():
        return None
    try:
        return read_results(output)
    except InputError as error:
        log.warning("%s", error)
        return None


def read_results(output: Path) -> dict[str, float]:
    """The held-out metrics in the file evaluation.json of a run; raises InputError where it cannot be read."""
    advice = f"{plugin_files.command('train', '--resume', output)} makes it anew"
    return read(output / "evaluation.json", dict[str, float], advice)


def changes_of_result(output: Path, recipe: Recipe) -> list[str]:
    """Lines ``key: old -> new`` for the keys in which `recipe` would give the run in `output` another result.

    The run's description is repaired first, see `repair`, since the results are there all the same.
    """
    repair(output)
    changed = recipe.differs(_saved(output / "config.yaml"), partial(differences, may_change=NO_RESULT_DEPENDS_ON))
    return changed + [f"{key}: {change}" for key, change in changed_inputs(about(output).inputs, recipe.inputs).items()]


def changes_before_going_on(saved: Mapping[str, str] | None, recipe: Recipe) -> list[str]:
    """Lines ``key: old -> new`` for what a run depends on beside its recipe, and may not change before it goes on.

    Code of a plugin may: a run that a mistake in it has stopped goes on once that is mended.
    """
    changed = changed_inputs(saved, recipe.inputs)
    return [f"{key}: {change}" for key, change in changed.items() if not (key.endswith(CODE) or key.startswith(EVALUATE))]


def finished(output: Path, recipe: Recipe) -> dict[str, float] | None:
    """The held-out metrics of the complete run in `output`; None if there is none yet.

    Raises:
        InputError: if the folder holds a run with other settings, its length included.
    """
    values = results(output)
    if values is None:
        return None
    changed = changes_of_result(output, recipe)
    if changed:
        message = "holds a run with other settings. Choose another folder, or undo:"
        raise InputError(f"{output}: {message}\n  " + "\n  ".join(changed))
    return values


def _commit() -> str:
    """The git commit of this package's source, where it is a checkout; empty where it is installed."""
    source = Path(amd_plugin.__file__).parents[1]
    if not (source / ".git").exists():
        return ""
    command = ["git", "-C", str(source), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return ""


def _saved(config: Path) -> dict[str, Any]:
    """The recipe in a run's config.yaml, which has all of its sections."""
    return _whole(Source(config).read(SECTIONS), str(config))


def _whole(recipe: Any, place: str) -> dict[str, Any]:
    """`recipe`, which has all the sections of a run's; raises InputError where it has not."""
    sections = recipe if isinstance(recipe, dict) else {}
    missing = sorted(name for name in SECTIONS if not isinstance(sections.get(name), dict))
    if missing:
        raise InputError(f"{place}: is not what a run writes: {', '.join(missing)} is missing")
    return sections


def _about(path: Path) -> About:
    return read(path, About, "Delete it, and it is written anew")
