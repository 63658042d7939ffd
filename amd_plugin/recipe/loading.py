"""Recipes: YAML in, a checked `RecipeConfig` out, every problem at once and with its place in the file.

Recipes hold names, never import paths. `amd_plugin.recipe.yaml_source` reads the YAML and finds the line of a problem.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from amd_plugin.config import REWARD_CONTEXT, DataConfig, ObjectiveConfig, RecipeConfig, RewardConfig
from amd_plugin.errors import InputError, did_you_mean
from amd_plugin.hookspecs import Objective
from amd_plugin.options import Place, Removed, accepted, declared, metadata, options_model, without_removed
from amd_plugin.plugins import PluginManager
from amd_plugin.recipe.checks import check_model, check_relations
from amd_plugin.recipe.files import SHIPPED, find
from amd_plugin.recipe.inputs import Inputs, inputs_of
from amd_plugin.recipe.yaml_source import Source
from amd_plugin.tasks import TASKS, Task

# Keys with paths, which may be relative to the recipe's folder.
FILES = (("data", "source"), ("data", "held_out"), ("model", "path"), ("model", "student_from"), ("model", "fake_score_from"),
         ("model", "decoder"), ("model", "teacher_lora"), ("model", "student_lora"), ("model", "fake_score_lora"))  # fmt: skip
REWARD_FILES = ("path", "processor", "clip", "tokenizer", "med_config")  # options of rewards, likewise

CALLED_WITH = {"media", "prompts"}  # arguments of a reward, which are no options of what makes it


@dataclass
class Recipe:
    """A recipe that passed every check.

    Attributes:
        name: name of the file without its suffix.
        config: resolved configuration, with all defaults.
        objective_options: options of the chosen objective, defaults included.
        task: task of the section ``data``; checks and run use the same object.
        objective: objective that validation built, see `take_objective`.
        unused_options: names of options of other objectives, which the chosen one does not take.
        removed_options: options that the chosen objective took once.
        added_options: options that it takes since, each with the value at which all is as it was.
        overrides: overrides ``a.b=value`` that were applied to the file, the objective's name among them.
        inputs: what it depends on beside its values, see `inputs_of`.
    """

    name: str
    config: RecipeConfig
    objective_options: dict[str, Any]
    task: Task
    objective: Objective
    unused_options: list[str] = field(default_factory=list)
    removed_options: Mapping[str, Removed] = field(default_factory=dict)
    added_options: Mapping[str, Any] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()
    inputs: Inputs = field(default_factory=dict)
    _in_use: bool = field(default=False, repr=False, compare=False)

    def take_objective(self, plugins: PluginManager) -> Objective:
        """The objective of a run: the one that validation built, and a new one for every further run of this recipe."""
        if not self._in_use:
            self._in_use = True
            return self.objective
        return plugins.make_objective(self.config.objective.name, self.objective_options)

    def differs(self, saved: Any, differences: Callable[[Any, Any], list[str]]) -> list[str]:
        """`differences` of a saved recipe to this one.

        Options that were removed or added since, with the value that is always used in one of the two, make none.
        """
        plain = [dict(values) if isinstance(values, Mapping) else values for values in (saved, self.as_dict())]
        for values in plain:
            if isinstance(values, dict) and isinstance(section := values.get("objective"), Mapping):
                kept = without_removed(self.removed_options, section)
                as_before = [option for option, value in self.added_options.items() if kept.get(option, value) == value]
                values["objective"] = {option: value for option, value in kept.items() if option not in as_before}
        return differences(*plain)

    def as_dict(self) -> dict[str, Any]:
        """The resolved configuration in plain Python values."""
        return self.config.model_dump(mode="json")

    def as_yaml(self) -> str:
        """The resolved configuration as a recipe."""
        return yaml.safe_dump(self.as_dict(), sort_keys=False)


def load(
    name_or_path: str,
    plugins: PluginManager,
    overrides: Sequence[str] = (),
    objective: str | None = None,
) -> Recipe:
    """Reads, overrides and checks a recipe.

    Args:
        name_or_path: name of a shipped recipe, or path of a YAML file.
        plugins: manager in which objectives and rewards are looked up.
        overrides: overrides ``a.b=value`` with values in YAML, applied in order.
        objective: name of the objective in place of ``objective.name``; options that only others take are set aside.

    Raises:
        InputError: with one line per problem, ``file:line:col: path: message, got value``.
    """
    path = find(name_or_path)
    source = Source(path)
    data = source.read(RecipeConfig.model_fields)
    applied = (*overrides, *([] if objective is None else [f"objective.name={objective}"]))
    for override in applied:
        source.override(data, override)
    _find_files(data, path.parent)
    config = source.validate(RecipeConfig, data, (), elsewhere=partial(_places, data, plugins))
    if config is None:
        _check_sections(data, plugins, source)
        raise source.error()
    config, options, unused = _resolve(config, plugins, source)
    built = check_relations(config, plugins, options, source)
    source.stop_on_problems()
    assert built is not None  # noqa: S101 (None comes with problems only)
    if built[1].needs.own_rollouts:
        config = config.model_copy(update={"train": config.train.model_copy(update={"rollouts": "fresh"})})
    factory = plugins.objective_factory(config.objective.name)
    removed, added = _removed(factory), getattr(declared(factory), "ADDED", {})
    return Recipe(path.stem, config, options, *built, unused, removed, added, applied, inputs_of(config, plugins))


def read_config(path: Path) -> RecipeConfig:
    """The recipe that a run has saved at `path`, without what its plugins would say of it: they may not be installed here.

    Raises:
        InputError: with one line per problem, as of `load`.
    """
    source = Source(path)
    config = source.validate(RecipeConfig, source.read(RecipeConfig.model_fields), ())
    if config is None:
        raise source.error()
    _data_options(config.data, source)
    check_model(config, source)
    source.stop_on_problems()
    return config


def _find_files(data: dict[str, Any], folder: Path) -> None:
    """Makes relative paths absolute, of the current directory, beside this recipe or beside the shipped ones, in that order.

    So a run can be continued from any directory.
    """
    for section, key in FILES:
        part = data.get(section)
        value = part.get(key) if isinstance(part, dict) else None
        if isinstance(value, dict):  # a file with options beside its path
            part, key = value, "path"
        _find_file(part, key, (Path(), folder, *SHIPPED))
    evaluate = data.get("evaluate")
    for rewards in (data.get("rewards"), evaluate.get("rewards") if isinstance(evaluate, dict) else None):
        for entry in rewards if isinstance(rewards, list) else []:
            _find_files_of_reward(entry, folder)


def _find_files_of_reward(entry: Any, folder: Path) -> None:
    if isinstance(entry, dict) and isinstance(entry.get("name"), str):
        for key, value in entry.items():
            if key in REWARD_FILES:
                _find_file(entry, key, (Path(), folder))
            _find_files_of_reward(value, folder)  # of a reward that it wraps


def _find_file(part: Any, key: str, places: Sequence[Path]) -> None:
    value = part.get(key) if isinstance(part, dict) else None
    if isinstance(value, str) and value:
        path = next((f / value for f in places if os.path.isfile(f / value) or os.path.isdir(f / value)), None)
        part[key] = value if path is None else str(path.absolute())


def _resolve(config: RecipeConfig, plugins: PluginManager, source: Source) -> tuple[RecipeConfig, dict[str, Any], list[str]]:
    """Checks data, rewards and objective against the signatures of their factories, and fills in their defaults.

    Returns:
        Configuration with all options, options of the objective, and names of options that only other objectives take.
    """
    data = _data_options(config.data, source)
    held_out = TASKS[config.data.task].metrics if config.data.task in TASKS else config.evaluate.held_out
    for index, metric in enumerate(config.evaluate.held_out):
        if metric not in held_out:
            message = f"not a metric of {config.data.task}, got '{metric}'.{did_you_mean(metric, held_out)}"
            source.problem(("evaluate", "held_out", index), f"{message} There are: {', '.join(held_out)}")
    rewards = _rewards(config.rewards, ("rewards",), plugins, source)
    held_out_rewards = _rewards(config.evaluate.rewards, ("evaluate", "rewards"), plugins, source)
    options, unused = _objective_options(config.objective, plugins, source)
    evaluate = config.evaluate.model_copy(update={"rewards": held_out_rewards})
    resolved = {"data": config.data.resolved(data), "rewards": rewards, "objective": config.objective.resolved(options)}
    resolved["evaluate"] = evaluate
    return config.model_copy(update=resolved), dict(options or ()), unused


def _check_sections(data: dict[str, Any], plugins: PluginManager, source: Source) -> None:
    """Checks the valid sections of an invalid recipe, so that all its problems are reported at once."""
    if task := source.quietly(DataConfig, data.get("data")):
        _data_options(task, source)
    if objective := source.quietly(ObjectiveConfig, data.get("objective")):
        _objective_options(objective, plugins, source)
    evaluate = data.get("evaluate")
    judges = evaluate.get("rewards") if isinstance(evaluate, dict) else None
    for place, rewards in ((("rewards",), data.get("rewards")), (("evaluate", "rewards"), judges)):
        for index, entry in enumerate(rewards if isinstance(rewards, list) else []):
            if reward := source.quietly(RewardConfig, entry):
                _reward_options(reward, (*place, index), plugins, source)


def _places(data: dict[str, Any], plugins: PluginManager) -> dict[str, str]:
    """Option -> its place, of the recipe's task and objective, for somebody who leaves the section out, or names another."""
    chosen = (("data", "task", TASKS), ("objective", "name", plugins.objectives()))
    places = dict[str, str]()
    for section, key, factories in chosen:
        part = data.get(section)
        name = part.get(key) if isinstance(part, dict) else None
        factory = factories.get(name) if isinstance(name, str) else None
        if factory is not None:
            places |= {option: f"{section}.{option}" for option in accepted(factory) or ()}
    return places


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
    model = _reward_model(section.name, place, plugins, source)
    if model is None:
        return None
    options = section.factory_options(model.model_fields)
    _check_wrapped(model, options, place, plugins, source)
    return source.validate(model, options, place, also_known=RewardConfig.model_fields)


def _reward_model(name: str, place: Place, plugins: PluginManager, source: Source) -> type[BaseModel] | None:
    try:
        model = options_model(plugins.reward_factory(name), ignore=REWARD_CONTEXT)
    except InputError as error:
        source.problem((*place, "name"), str(error))
        return None
    if CALLED_WITH <= {option for option, field in model.model_fields.items() if field.is_required()}:
        message = f"the plugin's distill_rewards gives the reward '{name}' itself, which takes media and prompts"
        source.problem((*place, "name"), f"{message}. Give what makes it: {{'{name}': lambda: ...}}")
        return None
    return model


def _check_wrapped(
    model: type[BaseModel], options: Mapping[str, Any], place: Place, plugins: PluginManager, source: Source
) -> None:
    """Checks the rewards inside the `options` of another one, see `WrappedReward`."""
    for key, declaration in model.model_fields.items():
        entry, inside = options.get(key), (*place, key)
        if metadata(declaration).get("wraps") != "reward" or not isinstance(entry, Mapping):
            continue
        if not isinstance(name := entry.get("name"), str):
            source.problem((*inside, "name"), "required, but not given" if name is None else f"must be text, got {name!r}")
        elif (wrapped := _reward_model(name, inside, plugins, source)) is not None:
            own = {option: value for option, value in entry.items() if option != "name"}
            _check_wrapped(wrapped, own, inside, plugins, source)
            source.validate(wrapped, own, inside)


def _objective_options(section: ObjectiveConfig, plugins: PluginManager, source: Source) -> tuple[BaseModel | None, list[str]]:
    """The objective's own options, and names of the given options that only other objectives take."""
    try:
        factory = plugins.objective_factory(section.name)
        model = options_model(factory)
    except InputError as error:
        source.problem(("objective", "name"), str(error))
        return None, []
    own = accepted(factory)
    others = {option for other in plugins.objectives().values() for option in (*(accepted(other) or ()), *_removed(other))}
    unused = sorted(o for o in section.options if own is not None and o not in own and o in others)
    unused = [option for option in unused if option not in _removed(factory)]
    given = {o: v for o, v in section.options.items() if o not in unused}
    return source.validate(model, given, ("objective",), also_known=others), unused


def _removed(factory: Callable[..., Any]) -> Mapping[str, Removed]:
    """The removed options of `factory`, by name."""
    model = declared(factory)
    return {} if model is None else model.REMOVED
