"""What a run would do, without a training step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from amd_plugin.errors import InputError
from amd_plugin.host.running.run_folder import find_checkpoint
from amd_plugin.host.running.trackers import check_trackers
from amd_plugin.models import shipped_configs
from amd_plugin.models.backbone import meta_backbone
from amd_plugin.plugins import PluginManager
from amd_plugin.recipe.loading import Recipe
from amd_plugin.schedule import Ladder
from amd_plugin.tasks import check_installed


def dry_run(
    recipe: Recipe, plugins: PluginManager, output: Path, resume: str | None = None, *, named: bool = True
) -> dict[str, Any]:
    """Checks a run as far as that goes without weights, and describes it: title -> value, to be shown as a table.

    Args:
        recipe, plugins, output, resume: as for `amd_plugin.host.run.train`.
        named: whether somebody chose `output`; a new run whose default folder is taken needs another one, and is right.

    Raises:
        InputError: for what is wrong with recipe, folder, trackers or network; for a public model whose configs are shipped
            and whose hub does not answer, only for what those configs show.
        MissingDependency: where the package of the task or of a tracker is not installed.
    """
    config = recipe.config
    check_installed(recipe.task)
    check_trackers(config.train.trackers)
    start, taken = None, {}
    try:
        start = find_checkpoint(output, recipe, resume)
    except InputError as error:
        if named or resume is not None:
            raise
        taken = {"needs": f"--output FOLDER, since {output} is the default and is taken ({error})"}
    model, source = shipped_configs.with_configs(config.model)
    network, scheduler = meta_backbone(model, recipe.task, config.train.seed, plugins.families())
    return {
        "recipe": recipe.name,
        "objective": config.objective.name,
        "options": recipe.objective_options,
        "uses rewards": recipe.objective.needs.reward,
        "model": source,
        "network": f"{type(network).__name__}, {sum(p.numel() for p in network.parameters()):,} parameters",
        "visited timesteps": Ladder(scheduler, config.model.student_steps).timesteps.tolist(),
        "student updates": config.train.max_steps,
        "fake-score updates": config.train.max_steps * config.train.fake_updates,
        "starts from": str(start) if start else "the teacher",
        "output": str(output),
        **taken,
    }
