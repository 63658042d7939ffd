"""What a command line asks for: a new run of a recipe, or the continuation of a run from its own folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from amd_plugin.host.running.folder_kind import continued, is_run
from amd_plugin.host.running.run_description import about, find_run, repair
from amd_plugin.plugins import PluginManager
from amd_plugin.recipe.loading import Recipe, load


class Start(NamedTuple):
    """A run to be started.

    Attributes:
        recipe: its checked recipe.
        folder: its folder.
        resume: ``auto``, a checkpoint's folder, or None for a new run.
    """

    recipe: Recipe
    folder: Path
    resume: str | None


def start_of(
    recipe: str | None, overrides: Sequence[str], objective: str | None, output: Path | None, resume: str | None,
    plugins: PluginManager,
) -> Start:  # fmt: skip
    """The run that these arguments of ``amd-plugin train`` ask for. Reads only.

    Without a recipe the run's own goes on, and `overrides` change it. With a recipe, the overrides that the run was started
    with are applied first, so that they need not be repeated.

    Args:
        recipe: name or file of the recipe; None for that of the run which is continued.
        overrides: overrides ``a.b=value``.
        objective: name of the objective in place of the recipe's.
        output: folder of the run; by default the folder of the run that `resume` names, or runs/RECIPE-OBJECTIVE.
        resume: ``auto``, a run's folder, a checkpoint's folder, or None.
        plugins: registry of objectives and rewards.

    Raises:
        InputError: where there is no run to go on with, or the recipe has problems.
    """
    if resume not in (None, "auto") and is_run(Path(resume)) and (output is None or output.resolve() == Path(resume).resolve()):
        output, resume = Path(resume), "auto"
    if recipe is None:
        folder = continued(resume, output)
        return Start(find_run(folder, plugins, overrides, objective), folder, resume)
    loaded = load(recipe, plugins, overrides, objective)
    folder = output or Path("runs") / f"{loaded.name}-{loaded.config.objective.name}"
    if resume is not None and is_run(folder):
        repair(folder)
        loaded = load(recipe, plugins, (*about(folder).overrides, *overrides), objective)
    return Start(loaded, folder, resume)
