"""Whether a recipe is that of a run which is there: what may change before it goes on, and what its results depend on."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from amd_plugin import plugin_files
from amd_plugin.errors import InputError
from amd_plugin.host.running.run_description import about, repair, saved_recipe
from amd_plugin.json_files import read
from amd_plugin.recipe.inputs import CODE, EVALUATE, changed_inputs
from amd_plugin.recipe.loading import Recipe

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


def check_recipe(output: Path, recipe: Recipe) -> None:
    """Refuses a `recipe` with which the run in `output` cannot go on; writes its config.yaml anew where that is damaged.

    Raises:
        InputError: with the keys that differ and may not.
    """
    repair(output)
    changed = recipe.differs(saved_recipe(output / "config.yaml"), differences)
    changed += changes_before_going_on(about(output).inputs, recipe)
    if changed:
        raise InputError(f"{output}: holds a run of another recipe. Choose another folder, or undo:\n  " + "\n  ".join(changed))


def changes_before_going_on(saved: Mapping[str, str] | None, recipe: Recipe) -> list[str]:
    """Lines ``key: old -> new`` for what a run depends on beside its recipe, and may not change before it goes on.

    Code of a plugin may: a run that a mistake in it has stopped goes on once that is mended.
    """
    changed = changed_inputs(saved, recipe.inputs)
    return [f"{key}: {change}" for key, change in changed.items() if not (key.endswith(CODE) or key.startswith(EVALUATE))]


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
    changed = recipe.differs(saved_recipe(output / "config.yaml"), partial(differences, may_change=NO_RESULT_DEPENDS_ON))
    return changed + [f"{key}: {change}" for key, change in changed_inputs(about(output).inputs, recipe.inputs).items()]


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
