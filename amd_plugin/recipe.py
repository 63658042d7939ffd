"""Recipes: YAML in, a checked `RecipeConfig` out, every problem at once and with its place in the file.

YAML is read by its 1.2 rules (`1e-5` is a number, `no` is text, `012` is twelve), duplicate keys and aliases are refused.
Recipes hold names, never import paths.
"""

from __future__ import annotations

import json
import re
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from amd_plugin.config import RecipeConfig, options_model
from amd_plugin.errors import InputError, OptionError, did_you_mean
from amd_plugin.plugins import PluginManager, accepted
from amd_plugin.tasks import TASKS

Place = tuple[str | int, ...]

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
    source = _Source(path)
    data = source.read()
    for override in overrides:
        source.override(data, override)
    if objective is not None:
        source.override(data, f"objective.name={objective}")
    config = source.validate(RecipeConfig, data, ())
    source.stop_on_problems()
    options, unused = _check_choices(config, plugins, source)
    _check_relations(config, plugins, options, source)
    source.stop_on_problems()
    return Recipe(path.stem, config, options, unused)


def _check_choices(config: RecipeConfig, plugins: PluginManager, source: _Source) -> tuple[dict[str, Any], list[str]]:
    """Checks data, objective and rewards against the signatures of what they name; returns the objective's options."""
    task = TASKS.get(config.data.task)
    if task is None:
        hint = did_you_mean(config.data.task, TASKS)
        source.problem(("data", "task"), f"unknown task, got '{config.data.task}'.{hint} There are: {', '.join(TASKS)}")
    else:
        source.validate(options_model(task), config.data.options, ("data",))
        for index, metric in enumerate(config.evaluate.held_out):
            if metric not in task.metrics:
                what = f"not a metric of {config.data.task}, got '{metric}'.{did_you_mean(metric, task.metrics)}"
                source.problem(("evaluate", "held_out", index), f"{what} There are: {', '.join(task.metrics)}")

    for index, reward in enumerate(config.rewards):
        place: Place = ("rewards", index)
        try:
            model = options_model(plugins.reward_factory(reward.name), ignore=("task",))
        except InputError as error:
            source.problem((*place, "name"), str(error))
            continue
        source.validate(model, reward.options, place)

    name = config.objective.name
    try:
        factory = plugins.objective_factory(name)
    except InputError as error:
        source.problem(("objective", "name"), str(error))
        return {}, []
    mine = accepted(factory)
    known = {option for other in plugins.objectives().values() for option in accepted(other) or ()}
    unused = sorted(o for o in config.objective.options if mine is not None and o not in mine and o in known)
    options = {o: v for o, v in config.objective.options.items() if o not in unused}
    model = options_model(factory)
    checked = source.validate(model, options, ("objective",), also_known=known)
    return ({o: getattr(checked, o) for o in options if hasattr(checked, o)} if checked else {}), unused


def _check_relations(config: RecipeConfig, plugins: PluginManager, options: dict[str, Any], source: _Source) -> None:
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
        objective = plugins.make_objective(config.objective.name, options)
    except OptionError as error:
        source.problem(("objective", error.option), str(error).partition(": ")[2])
        return
    except InputError as error:
        source.problem(("objective",), str(error))
        return
    name = config.objective.name
    if objective.needs_reward and not config.rewards:
        source.problem(("objective", "name"), f"objective '{name}' needs at least one entry under rewards, got none")
    if train.group_size < objective.min_group_size:
        what = f"objective '{name}' compares samples of the same prompt and needs at least {objective.min_group_size}"
        source.problem(("train", "group_size"), f"{what}, got {train.group_size}")


class _Source:
    """One recipe file: where each key stands, and what is wrong so far."""

    def __init__(self, path: Path):
        self.path = path
        self.marks: dict[Place, str] = {}
        self.problems: list[str] = []

    def read(self) -> dict[str, Any]:
        try:
            text = self.path.read_text(encoding="utf-8")
            node = yaml.compose(text, Loader=_CoreLoader)
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{self.path}: cannot be read: {error}") from error
        except yaml.YAMLError as error:
            raise InputError(self._yaml_problem(error)) from error
        if not isinstance(node, yaml.MappingNode):
            got = {type(None): "an empty file", yaml.SequenceNode: "a list"}.get(type(node), "a single value")
            raise InputError(
                f"{self.path}:1:1: a recipe is a mapping with the keys {', '.join(RecipeConfig.model_fields)}, got {got}"
            )
        data: dict[str, Any] = self._plain(node, ())
        self.stop_on_problems()
        return data

    def override(self, data: dict[str, Any], text: str) -> None:
        """Applies ``a.b=value``; keys that do not exist are left to validation, which names the nearest."""
        path, equals, value = text.partition("=")
        keys: list[str | int] = [int(k) if k.isdigit() else k for k in path.strip().split(".")]
        if not equals or "" in keys:
            raise InputError(f"--set {text}: must read key.key=value")
        try:
            node = yaml.compose(value, Loader=_CoreLoader)
        except yaml.YAMLError as error:
            raise InputError(f"--set {text}: the value is not YAML: {error}") from error
        holder: Any = data
        for depth, key in enumerate(keys):
            if isinstance(holder, dict) and isinstance(key, str):
                child = holder.setdefault(key, {})
            elif isinstance(holder, list) and isinstance(key, int) and key < len(holder):
                child = holder[key]
            else:
                raise InputError(f"--set {text}: there is no '{'.'.join(map(str, keys[: depth + 1]))}'")
            holder, parent = child, holder
        parent[keys[-1]] = None if node is None else self._plain(node, tuple(keys), origin=f"--set {text}")
        self.marks[tuple(keys)] = f"--set {text}"
        self.stop_on_problems()

    def validate(
        self, model: type[BaseModel], data: Mapping[str, Any], prefix: Place, also_known: typing.Iterable[str] = ()
    ) -> Any:
        """The model of `data`, or None after noting what is wrong with it."""
        try:
            # Strict JSON mode takes lists for tuples and integers for floats, and neither text nor booleans for numbers.
            return model.model_validate_json(json.dumps(data), strict=True)
        except ValidationError as error:
            for detail in error.errors():
                place: Place = (*prefix, *detail["loc"])
                if detail["type"] == "extra_forbidden":
                    known = {*_keys(model, detail["loc"][:-1]), *also_known}
                    self.problem(place, f"unknown key.{did_you_mean(str(place[-1]), known)}")
                elif detail["type"] == "missing":
                    self.problem(place, "required, but not given")
                else:
                    self.problem(place, f"{detail['msg'][0].lower()}{detail['msg'][1:]}, got {detail['input']!r}")
            return None

    def problem(self, place: Place, what: str) -> None:
        """Notes a problem at `place`, or at the nearest key above it that stands in the file."""
        at = place
        while at and at not in self.marks:
            at = at[:-1]
        self.problems.append(f"{self.marks.get(at, f'{self.path}:1:1')}: {'.'.join(map(str, place))}: {what}")

    def stop_on_problems(self) -> None:
        if self.problems:
            raise InputError("\n".join(self.problems))

    def _plain(self, node: yaml.Node, place: Place, origin: str = "") -> Any:
        """Python values of a node, noting where each key stands and which keys stand twice."""
        here = origin or f"{self.path}:{node.start_mark.line + 1}:{node.start_mark.column + 1}"
        self.marks.setdefault(place, here)
        if isinstance(node, yaml.SequenceNode):
            return [self._plain(child, (*place, index), origin) for index, child in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode):
            plain: dict[str, Any] = {}
            for key_node, value_node in node.value:
                key = str(key_node.value)
                self.marks[(*place, key)] = origin or (
                    f"{self.path}:{key_node.start_mark.line + 1}:{key_node.start_mark.column + 1}"
                )
                if key in plain:
                    self.problem((*place, key), "this key stands twice; the first would be lost")
                plain[key] = self._plain(value_node, (*place, key), origin)
            return plain
        return _CoreLoader("").construct_object(node)

    def _yaml_problem(self, error: yaml.YAMLError) -> str:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        place = f"{self.path}:{mark.line + 1}:{mark.column + 1}" if mark else f"{self.path}:1:1"
        problem = getattr(error, "problem", None) or str(error)
        if "\\t" in problem:
            problem = "a tab stands where YAML allows only spaces; indent with spaces"
        return f"{place}: {problem}"


class _CoreLoader(yaml.SafeLoader):
    """YAML 1.2's core schema on PyYAML's safe loader; no aliases, no tags."""

    yaml_implicit_resolvers: typing.ClassVar[dict[str, Any]] = {}  # type: ignore[misc]

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise yaml.composer.ComposerError(None, None, "aliases are not allowed in recipes", event.start_mark)
        if getattr(event, "tag", None):
            raise yaml.composer.ComposerError(None, None, "tags are not allowed in recipes", event.start_mark)
        return super().compose_node(parent, index)

    def construct_decimal(self, node: Any) -> int:
        return int(self.construct_scalar(node))


for _tag, _pattern, _first in (
    ("null", r"(?:null|Null|NULL|~|)", ["n", "N", "~", ""]),
    ("bool", r"(?:true|True|TRUE|false|False|FALSE)", list("tTfF")),
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
):
    _CoreLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first)
_CoreLoader.add_constructor("tag:yaml.org,2002:int", _CoreLoader.construct_decimal)


def _keys(model: type[BaseModel], place: Sequence[str | int]) -> list[str]:
    """Names of the fields of the model that stands at `place` inside `model`."""
    for step in place:
        if isinstance(step, int):
            continue
        annotation: Any = model.model_fields[step].annotation
        inner = [annotation, *typing.get_args(annotation)]
        model = next(m for m in inner if isinstance(m, type) and issubclass(m, BaseModel))
    return list(model.model_fields)
