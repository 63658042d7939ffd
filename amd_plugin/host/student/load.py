"""The student of a run, from a checkpoint on disk, with everything that sampling and exporting need, and no optimizer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from amd_plugin.errors import InputError, unreadable_is_input_error
from amd_plugin.host import checkpoint
from amd_plugin.host.checkpoint.files import ADVICE
from amd_plugin.host.running.recipe_changes import differences
from amd_plugin.host.running.run_description import Described, find_run
from amd_plugin.models.backbone import Backbone, load_backbone
from amd_plugin.models.ema import EMA
from amd_plugin.models.roles import Role, StartNetworks, make_roles
from amd_plugin.plugins import PluginManager
from amd_plugin.recipe.loading import Recipe
from amd_plugin.tasks import Task


@dataclass
class Student:
    """The student of a checkpoint.

    Attributes:
        recipe: recipe of the run.
        backbone: the model that the student was distilled from.
        role: the student with its trained weights.
        average: EMA of its weights.
        teacher: the teacher; it may share the student's network.
        step: number of student updates.
        checkpoint: folder of the checkpoint.
    """

    recipe: Recipe
    backbone: Backbone
    role: Role
    average: EMA
    teacher: Role
    step: int
    checkpoint: Path

    @property
    def task(self) -> Task:
        """The recipe's task."""
        return self.recipe.task

    @contextmanager
    def with_weights(self, weights: str) -> Iterator[Role]:
        """The role, with averaged weights for ``ema`` and with trained weights for ``raw``, within the context."""
        if weights == "raw":
            yield self.role
        else:
            with self.average.applied():
                yield self.role


def load_student(run: Path, plugins: PluginManager, at: str | None = None) -> Student:
    """The student of the run in the folder `run`, finished or not.

    Args:
        run: the run's folder.
        plugins: registry of the recipe's plugins.
        at: a step, or a checkpoint's folder; by default the newest checkpoint.

    Raises:
        InputError: if there is no such run or checkpoint, it cannot be read, or it is of a run of another recipe.
    """
    recipe = find_run(run, plugins)
    folder = checkpoint.find(run / "checkpoints", at)
    _check_recipe(run, recipe, folder)
    config = recipe.config
    backbone = load_backbone(config.model, recipe.task, config.train.seed, plugins.families())
    roles = make_roles(config.model, StartNetworks(backbone.network, backbone.student), config.train.seed)
    average = EMA(roles["student"], config.train.ema)
    # What else is in there, several times as much, is left where it is.
    tensors, state = checkpoint.load(folder, lazy=True, needed=("student", "ema"))
    with unreadable_is_input_error(f"checkpoint {folder}: does not fit its run", f" {ADVICE}"):
        roles["student"].load_state_dict(tensors["student"])
        average.load_state_dict(tensors["ema"])
    return Student(recipe, backbone, roles["student"], average, roles["teacher"], state["step"], folder)


def _check_recipe(run: Path, recipe: Recipe, folder: Path) -> None:
    """Refuses another run's checkpoint whose recipe differs: results and cards would name this one's.

    A run's own are not compared, since its config.yaml may name other places after it was moved to another machine.
    """
    if folder.resolve().is_relative_to(run.resolve()):
        return
    if changed := recipe.differs(checkpoint.read_state(folder, Described)["recipe"], differences):
        of = "Name the run that it is of, or a checkpoint of this one"
        message = f"--checkpoint {folder}: is of another recipe than {run}. {of}. They differ in:"
        raise InputError(f"{message}\n  " + "\n  ".join(changed))
