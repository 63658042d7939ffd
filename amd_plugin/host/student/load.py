"""A run's student, from a checkpoint on disk: all that sampling and exporting need, and no optimizer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amd_plugin.host import checkpoint
from amd_plugin.host.running.run_folder import find_run
from amd_plugin.models import backbone as models
from amd_plugin.models.backbone import Backbone
from amd_plugin.models.ema import EMA
from amd_plugin.models.roles import Role, StartNetworks, make_roles
from amd_plugin.plugins import PluginManager
from amd_plugin.recipe.loading import Recipe
from amd_plugin.tasks import TASKS


@dataclass
class Student:
    """A student as a checkpoint has it.

    Attributes:
        recipe, task, backbone: of its run.
        role, average: it, and its averaged weights.
        teacher: whom it learnt from; may share its network.
        step: student updates it has had.
        checkpoint: folder it was read from.
    """

    recipe: Recipe
    task: Any
    backbone: Backbone
    role: Role
    average: EMA
    teacher: Role
    step: int
    checkpoint: Path

    @contextmanager
    def with_weights(self, weights: str) -> Iterator[Role]:
        """The role, with its averaged weights for ``ema`` and as it was trained for ``raw``."""
        if weights == "raw":
            yield self.role
        else:
            with self.average.applied():
                yield self.role


def load_student(run: Path, plugins: PluginManager, at: str | None = None) -> Student:
    """The student of the run in `run`, finished or not.

    Args:
        at: a step, or a checkpoint's folder; by default the newest checkpoint.

    Raises:
        InputError: if there is no such run or checkpoint, or one cannot be read.
    """
    recipe = find_run(run, plugins)
    folder = checkpoint.find(run / "checkpoints", at)
    config = recipe.config
    task = TASKS[config.data.task](**config.data.options)
    backbone = models.load(config.model, task, config.train.seed, plugins.families())
    roles = make_roles(config.model, StartNetworks(backbone.network, backbone.student), config.train.seed)
    average = EMA(roles["student"], config.train.ema)
    tensors, state = checkpoint.load(folder)
    roles["student"].load_state_dict(tensors["student"])
    average.load_state_dict(tensors["ema"])
    return Student(recipe, task, backbone, roles["student"], average, roles["teacher"], state["step"], folder)
