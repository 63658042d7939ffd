"""The folder of a run: whether a run may use it, and the checkpoint it continues from."""

from __future__ import annotations

import json
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

import amd_plugin
from amd_plugin.atomic import write_text
from amd_plugin.errors import InputError
from amd_plugin.host import checkpoint
from amd_plugin.plugins import PluginManager
from amd_plugin.recipe.loading import Recipe, load

# Keys that a user may change on purpose between a run and its continuation.
MAY_CHANGE = {
    "train": (
        "max_steps", "log_every", "evaluate_every", "checkpoint_every", "keep_checkpoints", "trackers", "project", "run_name",
        "accumulation", "max_failed_rewards", "failed_rewards_window", "stop_on_hacking",
    ),
    "rewards": ("on_error", "timeout", "device", "offload", "pool"),
    "evaluate": ("samples", "held_out", "rewards", "features", "fps"),
    "distributed": ("mixed_precision", "device", "teacher", "trained", "timeout"),
    # The checkpoint itself shows whether rung conditioning fits; the other only silences a check.
    "model": ("rung_conditioning", "distilled_teacher"),
}  # fmt: skip

PACKAGES = ("amd-plugin", "torch", "diffusers", "transformers", "peft", "accelerate")

# Keys that no metric of a finished run depends on.
NO_RESULT_DEPENDS_ON = {
    "train": (
        "log_every", "evaluate_every", "checkpoint_every", "keep_checkpoints", "trackers", "project", "run_name",
        "stop_on_hacking",
    ),
    "rewards": ("offload", "pool"),
    "evaluate": ("features", "fps"),
    "model": ("distilled_teacher",),
}  # fmt: skip


def open_folder(output: Path, recipe: Recipe) -> None:
    """Creates the run's folder, or prepares it for the continuation of its run.

    Raises:
        InputError: where it cannot be written.
    """
    try:
        (output / "samples").mkdir(parents=True, exist_ok=True)
        # Results of an earlier end are not the results of this run.
        (output / "evaluation.json").unlink(missing_ok=True)
        write_text(output / "config.yaml", recipe.as_yaml())
        write_json(
            output / "run.json",
            {
                "recipe": recipe.name,
                "objective": recipe.config.objective.name,
                "overrides": list(recipe.overrides),
                "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
                "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                "versions": {name: version(name) for name in PACKAGES},
                "commit": _commit(),
            },
        )
    except OSError as error:
        raise InputError(f"--output {output}: cannot be written: {error}") from error


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
    config = output / "config.yaml"
    if config.is_file():
        changed = recipe.differs(_saved(config), differences)
        if changed:
            raise InputError(
                f"--output {output}: holds a run of another recipe. Choose another folder, or undo:\n  " + "\n  ".join(changed)
            )
        if resume is None:
            message = f"holds a run already. Go on with amd-plugin train --resume {output}, or choose another folder"
            raise InputError(f"--output {output}: {message}")
    elif output.is_dir() and any(output.iterdir()):
        raise InputError(f"--output {output}: is not empty and holds no run. Choose another folder")
    if resume is None:
        return None
    if resume != "auto":
        checkpoint.check(Path(resume))
        return Path(resume)
    usable = checkpoint.available(output / "checkpoints")
    if not usable and any((output / "checkpoints").glob("step-*")):
        raise InputError(
            f"--resume auto: none of the checkpoints in {output / 'checkpoints'} can be used; see the warnings above"
        )
    return usable[-1] if usable else None


def is_run(output: Path) -> bool:
    """Whether the folder `output` holds a run."""
    return (output / "config.yaml").is_file()


def find_run(output: Path, plugins: PluginManager, overrides: Sequence[str] = (), objective: str | None = None) -> Recipe:
    """The recipe of the run in the folder `output`, with further `overrides` and another `objective` as in `load`.

    Raises:
        InputError: where there is no run, or it cannot be read.
    """
    if not is_run(output):
        raise InputError(f"{output}: holds no run (no config.yaml)")
    recipe = load(str(output / "config.yaml"), plugins, overrides, objective)
    try:
        about = json.loads((output / "run.json").read_text())
        recipe.name, recipe.overrides = about["recipe"], (*about.get("overrides", ()), *recipe.overrides)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{output / 'run.json'}: cannot be read: {error}") from error
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
    """The held-out metrics of the run in `output`; None where it is not complete."""
    evaluation = output / "evaluation.json"
    return json.loads(evaluation.read_text()) if evaluation.is_file() else None


def changes_of_result(output: Path, recipe: Recipe) -> list[str]:
    """Lines ``key: old -> new`` for the keys in which `recipe` would give the run in `output` another result."""
    return recipe.differs(_saved(output / "config.yaml"), partial(differences, may_change=NO_RESULT_DEPENDS_ON))


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


def _saved(config: Path) -> Any:
    try:
        return yaml.safe_load(config.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise InputError(f"{config}: cannot be read: {error}") from error
