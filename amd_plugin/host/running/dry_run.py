"""What a run would do, without a training step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from amd_plugin.host.running.run_folder import find_checkpoint
from amd_plugin.models import shipped_configs
from amd_plugin.models.backbone import meta_backbone
from amd_plugin.plugins import PluginManager
from amd_plugin.recipe.loading import Recipe
from amd_plugin.schedule import Ladder
from amd_plugin.tasks import check_installed


def dry_run(recipe: Recipe, plugins: PluginManager, output: Path, resume: str | None = None) -> dict[str, Any]:
    """Builds everything a run needs except its teacher, and describes the run: title -> value, to be shown as a table.

    Args:
        recipe, plugins, output, resume: as for `amd_plugin.host.run.train`.

    Raises:
        InputError: for whatever would stop the run before its first step; for a public model whose configs are shipped and
            whose hub does not answer, only for what those configs show.
    """
    config = recipe.config
    check_installed(recipe.task)
    start = find_checkpoint(output, recipe, resume)
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
    }
