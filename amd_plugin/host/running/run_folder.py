"""The folder of a run: whether a run may use it, and the checkpoint it continues from."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import amd_plugin
from amd_plugin import plugin_files
from amd_plugin.atomic import is_draft, sweep, write_text
from amd_plugin.disk import output_refused
from amd_plugin.errors import InputError
from amd_plugin.host import checkpoint
from amd_plugin.host.checkpoint.files import ADVICE, PARTIAL
from amd_plugin.host.running.folder_kind import is_run
from amd_plugin.host.running.folder_lock import FolderLock, is_lock
from amd_plugin.host.running.recipe_changes import check_recipe
from amd_plugin.host.running.run_description import about, command_line
from amd_plugin.host.running.student_files import check_replaceable
from amd_plugin.recipe.loading import Recipe

PACKAGES = ("amd-plugin", "torch", "diffusers", "transformers", "peft", "accelerate")

log = logging.getLogger(__name__)


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


def _is_beginning(entry: Path) -> bool:
    """Whether a run that was killed before it had a config.yaml may have left this."""
    return is_lock(entry) or is_draft(entry) or entry.name == "run.json"


def write_json(path: Path, content: Any) -> None:
    """Writes `content`, indented, for people and programs to read."""
    write_text(path, json.dumps(content, indent=1))


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
