"""Recipes: YAML in, a checked `RecipeConfig` out, every problem at once and with its place in the file.

Recipes hold names, never import paths. `amd_plugin.recipe.yaml_source` reads the YAML and finds the line of a problem.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from amd_plugin.config import DataConfig, ObjectiveConfig, RecipeConfig, RewardConfig
from amd_plugin.errors import InputError, did_you_mean
from amd_plugin.hookspecs import Objective
from amd_plugin.options import Place, accepted, declared, options_model
from amd_plugin.plugins import PluginManager
from amd_plugin.recipe.checks import check_relations
from amd_plugin.recipe.yaml_source import Source
from amd_plugin.tasks import TASKS, Task

# What may name files that lie beside the recipe.
FILES = (("data", "source"), ("data", "held_out"), ("model", "path"), ("model", "student_from"), ("model", "decoder"))
SHIPPED = [Path(__file__).parents[1] / "recipes", Path(__file__).parents[2] / "recipes"]


@dataclass
class Recipe:
    """A recipe that passed every check.

    Attributes:
        name: its file's stem.
        config: the resolved values.
        objective_options: options of the chosen objective, defaults included.
        task: the task of the data section; checks and run use the same object.
        objective: the objective as it was built for validation; a run takes a copy with `new_objective`.
        unused_options: options of other objectives, kept for them and not used here.
    """

    name: str
    config: RecipeConfig
    objective_options: dict[str, Any]
    task: Task
    objective: Objective
    unused_options: list[str] = field(default_factory=list)

    def new_objective(self) -> Objective:
        """The objective that validation built, without any state."""
        return copy.deepcopy(self.objective)

    def as_dict(self) -> dict[str, Any]:
        """The resolved values, plain."""
        return self.config.model_dump(mode="json")

    def as_yaml(self) -> str:
        """The resolved values as a recipe that reproduces them."""
        return yaml.safe_dump(self.as_dict(), sort_keys=False)


def shipped() -> dict[str, Path]:
    """The recipes that come with the package, by name."""
    return {path.stem: path for folder in SHIPPED if folder.is_dir() for path in sorted(folder.glob("*.yaml"))}


def find(name_or_path: str) -> Path:
    """The file of a shipped recipe or a path; raises InputError with the nearest names."""
    known = shipped()
    if name_or_path in known:
        return known[name_or_path]
    path = Path(name_or_path)
    if path.is_file():
        return path
    if path.suffix in (".yaml", ".yml") or path.parent != Path("."):
        raise InputError(f"recipe {name_or_path}: no such file")
    hint = did_you_mean(name_or_path, known)
    raise InputError(f"recipe '{name_or_path}': neither a file nor one of {', '.join(known)}.{hint}")


def load(
    name_or_path: str,
    plugins: PluginManager,
    overrides: Sequence[str] = (),
    objective: str | None = None,
) -> Recipe:
    """Reads, overrides and checks a recipe.

    Args:
        name_or_path: a shipped recipe's name or a YAML file.
        plugins: where objectives and rewards are looked up.
        overrides: ``a.b=value`` each, the value read as YAML; applied in order.
        objective: replaces ``objective.name``. Options that only other objectives know are then set aside.

    Raises:
        InputError: with one line per problem, ``file:line:col: path: what, got what``.
    """
    path = find(name_or_path)
    source = Source(path)
    data = source.read(RecipeConfig.model_fields)
    for override in overrides:
        source.override(data, override)
    if objective is not None:
        source.override(data, f"objective.name={objective}")
    _find_files(data, path.parent)
    config = source.validate(RecipeConfig, data, ())
    if config is None:
        _check_apart(data, plugins, source)
        raise source.error()
    config, options, unused = _resolve(config, plugins, source)
    built = check_relations(config, plugins, options, source)
    source.stop_on_problems()
    assert built is not None  # noqa: S101 (it is only missing where there are problems)
    return Recipe(path.stem, config, options, *built, unused)


def _find_files(data: dict[str, Any], folder: Path) -> None:
    """Relative paths are those of the current directory or, where nothing is there, beside this recipe or the shipped ones."""
    for section, key in FILES:
        part = data.get(section)
        value = part.get(key) if isinstance(part, dict) else None
        if part is not None and isinstance(value, str) and not Path(value).exists():
            beside = next((f / value for f in (folder, *SHIPPED) if (f / value).is_file() or (f / value).is_dir()), None)
            part[key] = value if beside is None else str(beside.absolute())


def _resolve(config: RecipeConfig, plugins: PluginManager, source: Source) -> tuple[RecipeConfig, dict[str, Any], list[str]]:
    """Checks data, rewards and objective against the signatures of what they name, and fills in their defaults.

    Returns:
        The config with all options in it, what the objective is built with, and the options only other objectives know.
    """
    data = _data_options(config.data, source)
    held_out = TASKS[config.data.task].metrics if config.data.task in TASKS else config.evaluate.held_out
    for index, metric in enumerate(config.evaluate.held_out):
        if metric not in held_out:
            what = f"not a metric of {config.data.task}, got '{metric}'.{did_you_mean(metric, held_out)}"
            source.problem(("evaluate", "held_out", index), f"{what} There are: {', '.join(held_out)}")
    rewards = _rewards(config.rewards, ("rewards",), plugins, source)
    judges = _rewards(config.evaluate.rewards, ("evaluate", "rewards"), plugins, source)
    options, unused = _objective_options(config.objective, plugins, source)
    evaluate = config.evaluate.model_copy(update={"rewards": judges})
    resolved = {"data": config.data.resolved(data), "rewards": rewards, "objective": config.objective.resolved(options)}
    resolved["evaluate"] = evaluate
    return config.model_copy(update=resolved), dict(options or ()), unused


def _check_apart(data: dict[str, Any], plugins: PluginManager, source: Source) -> None:
    """Checks the sections that can be read of a recipe that cannot be read as a whole: all problems at once."""
    if task := source.quietly(DataConfig, data.get("data")):
        _data_options(task, source)
    if objective := source.quietly(ObjectiveConfig, data.get("objective")):
        _objective_options(objective, plugins, source)
    rewards = data.get("rewards")
    for index, entry in enumerate(rewards if isinstance(rewards, list) else []):
        if reward := source.quietly(RewardConfig, entry):
            _reward_options(reward, ("rewards", index), plugins, source)


def _data_options(section: DataConfig, source: Source) -> BaseModel | None:
    task = TASKS.get(section.task)
    if task is not None:
        return source.validate(options_model(task), section.options, ("data",))
    hint = did_you_mean(section.task, TASKS)
    source.problem(("data", "task"), f"unknown task, got '{section.task}'.{hint} There are: {', '.join(TASKS)}")
    return None


def _rewards(sections: Sequence[RewardConfig], place: Place, plugins: PluginManager, source: Source) -> list[RewardConfig]:
    """The rewards at `place` with all their options."""
    return [r.resolved(_reward_options(r, (*place, index), plugins, source)) for index, r in enumerate(sections)]


def _reward_options(section: RewardConfig, place: Place, plugins: PluginManager, source: Source) -> BaseModel | None:
    try:
        model = options_model(plugins.reward_factory(section.name), ignore=("task",))
    except InputError as error:
        source.problem((*place, "name"), str(error))
        return None
    options = section.factory_options(model.model_fields)
    return source.validate(model, options, place, also_known=RewardConfig.model_fields)


def _objective_options(section: ObjectiveConfig, plugins: PluginManager, source: Source) -> tuple[BaseModel | None, list[str]]:
    """The objective's own options, and the names of those given that only other objectives know."""
    try:
        factory = plugins.objective_factory(section.name)
        model = options_model(factory)
    except InputError as error:
        source.problem(("objective", "name"), str(error))
        return None, []
    mine = accepted(factory)
    known = {option for other in plugins.objectives().values() for option in (*(accepted(other) or ()), *_removed(other))}
    unused = sorted(o for o in section.options if mine is not None and o not in mine and o in known)
    unused = [option for option in unused if option not in _removed(factory)]
    given = {o: v for o, v in section.options.items() if o not in unused}
    return source.validate(model, given, ("objective",), also_known=known), unused


def _removed(factory: Callable[..., Any]) -> Collection[str]:
    """Names of options that `factory` took once."""
    model = declared(factory)
    return () if model is None else model.REMOVED.keys()
