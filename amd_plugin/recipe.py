"""Recipes: YAML in, a checked `RecipeConfig` out, every problem at once and with its place in the file.

Recipes hold names, never import paths. How YAML is read, and how a problem finds its line, is in `amd_plugin.source`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from amd_plugin.config import RecipeConfig, options_model
from amd_plugin.errors import InputError, OptionError, did_you_mean
from amd_plugin.models import check_network
from amd_plugin.plugins import PluginManager, accepted
from amd_plugin.source import Place, Source
from amd_plugin.tasks import TASKS

SHIPPED = [Path(__file__).parent / "recipes", Path(__file__).parent.parent / "recipes"]


@dataclass
class Recipe:
    """A recipe that passed every check.

    Attributes:
        name: its file's stem.
        config: the resolved values.
        objective_options: what the chosen objective is built with.
        unused_options: options of other objectives, kept for them and not used here.
    """

    name: str
    config: RecipeConfig
    objective_options: dict[str, Any]
    unused_options: list[str] = field(default_factory=list)

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
    config = source.validate(RecipeConfig, data, ())
    source.stop_on_problems()
    config, options, unused = _resolve(config, plugins, source)
    _check_relations(config, plugins, options, source)
    source.stop_on_problems()
    return Recipe(path.stem, config, options, unused)


def _resolve(config: RecipeConfig, plugins: PluginManager, source: Source) -> tuple[RecipeConfig, dict[str, Any], list[str]]:
    """Checks data, rewards and objective against the signatures of what they name, and fills in their defaults.

    Returns:
        The config with all options in it, what the objective is built with, and the options only other objectives know.
    """
    data = None
    task = TASKS.get(config.data.task)
    if task is None:
        hint = did_you_mean(config.data.task, TASKS)
        source.problem(("data", "task"), f"unknown task, got '{config.data.task}'.{hint} There are: {', '.join(TASKS)}")
    else:
        data = source.validate(options_model(task), config.data.options, ("data",))
        for index, metric in enumerate(config.evaluate.held_out):
            if metric not in task.metrics:
                what = f"not a metric of {config.data.task}, got '{metric}'.{did_you_mean(metric, task.metrics)}"
                source.problem(("evaluate", "held_out", index), f"{what} There are: {', '.join(task.metrics)}")

    rewards = []
    for index, reward in enumerate(config.rewards):
        place: Place = ("rewards", index)
        try:
            model = options_model(plugins.reward_factory(reward.name), ignore=("task",))
        except InputError as error:
            source.problem((*place, "name"), str(error))
            continue
        rewards.append(reward.resolved(source.validate(model, reward.options, place)))

    name = config.objective.name
    try:
        factory = plugins.objective_factory(name)
        model = options_model(factory)
    except InputError as error:
        source.problem(("objective", "name"), str(error))
        return config, {}, []
    mine = accepted(factory)
    known = {option for other in plugins.objectives().values() for option in accepted(other) or ()}
    unused = sorted(o for o in config.objective.options if mine is not None and o not in mine and o in known)
    given = {o: v for o, v in config.objective.options.items() if o not in unused}
    options = source.validate(model, given, ("objective",), also_known=known)
    resolved = {"data": config.data.resolved(data), "rewards": rewards, "objective": config.objective.resolved(options)}
    return config.model_copy(update=resolved), dict(options or ()), unused


def _check_relations(config: RecipeConfig, plugins: PluginManager, options: dict[str, Any], source: Source) -> None:
    """What no single key can say: sizes that must divide, rewards an objective needs."""
    train = config.train
    if train.batch_size % train.group_size:
        source.problem(("train", "group_size"), f"must divide train.batch_size {train.batch_size}, got {train.group_size}")
    if train.batch_size % train.accumulation:
        source.problem(("train", "accumulation"), f"must divide train.batch_size {train.batch_size}, got {train.accumulation}")
    if not 0 <= train.sigma[0] < train.sigma[1] <= 1:
        source.problem(("train", "sigma"), f"must be [low, high] with 0 <= low < high <= 1, got {list(train.sigma)}")
    if source.problems:
        return
    try:
        task = TASKS[config.data.task](**config.data.options)
        check_network(config.model, task)
        if config.evaluate.samples < 5 * task.num_classes:
            what = f"must be at least five per class, {5 * task.num_classes}, got {config.evaluate.samples}"
            source.problem(("evaluate", "samples"), what)
    except OptionError as error:
        section = "model" if error.option in type(config.model).model_fields else "data"
        source.problem((section, error.option), str(error).partition(": ")[2])
    try:
        objective = plugins.make_objective(config.objective.name, options)
    except OptionError as error:
        source.problem(("objective", error.option), str(error).partition(": ")[2])
        return
    except InputError as error:
        source.problem(("objective",), str(error))
        return
    name = config.objective.name
    for option in ("match_sigma", "guidance_sigma"):
        if (window := getattr(objective, option)) is not None and not 0 <= window[0] < window[1] <= 1:
            what = f"must be fractions of the schedule, [low, high] with 0 <= low < high <= 1, got {list(window)}"
            source.problem(("objective", option), what)
    if objective.needs_reward and not config.rewards:
        source.problem(("objective", "name"), f"objective '{name}' needs at least one entry under rewards, got none")
    if train.group_size < objective.min_group_size:
        what = f"objective '{name}' compares samples of the same prompt and needs at least {objective.min_group_size}"
        source.problem(("train", "group_size"), f"{what}, got {train.group_size}")
