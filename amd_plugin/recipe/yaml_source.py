"""A YAML file with the position of each of its keys, so that problems are reported with file, line and column.

YAML is read by its 1.2 rules (`1e-5` is a number, `no` is text, `012` is twelve); duplicate keys, aliases and tags are refused.
"""

from __future__ import annotations

import json
import re
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from amd_plugin.disk import regular
from amd_plugin.errors import InputError
from amd_plugin.options import Place, problems_of, without_removed_in

Model = TypeVar("Model", bound=BaseModel)

LARGEST = 1_000_000  # bytes, which are read in seconds
DEEPEST = 40  # levels of nesting, beyond which Python's own stack would be the limit
_DIGITS = re.compile(r"[-+]?[0-9]{40,}")  # of which Python converts 4300 at most
_HALF = re.compile("[\ud800-\udfff]")  # half a character, which stands in no file and in no JSON
_INDEX = re.compile(r"[0-9]{1,9}")


class Source:
    """A YAML file with the positions of its keys, and the problems so far.

    Attributes:
        path: path of the file.
        marks: position of each key, ``file:line:col`` or ``--set a.b=c``.
        problems: messages, ``file:line:col: path: message`` or ``--set a.b=c: path: message``.
    """

    def __init__(self, path: Path):
        self.path = path
        self.marks: dict[Place, str] = {}
        self.problems: list[str] = []

    def read(self, expected: Iterable[str]) -> dict[str, Any]:
        """The file's content in plain Python values.

        Args:
            expected: top-level keys to list in the message if the file holds no mapping.

        Raises:
            InputError: if the file cannot be read, is not YAML or no mapping, or has duplicate keys.
        """
        try:
            if (size := regular(self.path).stat().st_size) > LARGEST:
                raise InputError(f"{self.path}: is no recipe: they have {LARGEST:,} bytes at most, got {size:,}")
            text = self.path.read_text(encoding="utf-8")
            node = yaml.compose(text, Loader=_CoreLoader)
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{self.path}: cannot be read: {error}") from error
        except yaml.YAMLError as error:
            raise InputError(self._yaml_problem(error)) from error
        if not isinstance(node, yaml.MappingNode):
            got = {type(None): "an empty file", yaml.SequenceNode: "a list"}.get(type(node), "a single value")
            raise InputError(f"{self.path}:1:1: a recipe is a mapping with the keys {', '.join(expected)}, got {got}")
        data: dict[str, Any] = self._plain(node, ())
        self.stop_on_problems()
        return data

    def override(self, data: dict[str, Any], text: str) -> None:
        """Applies ``a.b=value`` to `data`; unknown keys are added, and left to validation, which suggests the nearest.

        Raises:
            InputError: if `text` has another form, or an index in it is out of range.
        """
        path, equals, value = text.partition("=")
        keys: list[str | int] = [int(k) if _INDEX.fullmatch(k) else k for k in path.strip().split(".")]
        if not equals or "" in keys or _HALF.search(path):
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
        self,
        model: type[Model],
        data: Mapping[str, Any],
        prefix: Place,
        also_known: Iterable[str] = (),
        elsewhere: Callable[[], Mapping[str, str]] = dict,
    ) -> Model | None:
        """An instance of `model` from `data`; None if `data` is invalid, with its problems added.

        Args:
            model: model of a section.
            data: values of the section.
            prefix: place of the section in the file.
            also_known: further names to suggest for an unknown key.
            elsewhere: function that gives the places of keys that no model declares.
        """
        try:
            # Strict JSON mode takes lists for tuples and integers for floats, and neither text nor booleans for numbers.
            return model.model_validate_json(json.dumps(without_removed_in(model, data)), strict=True)
        except ValidationError as error:
            for place, message in problems_of(error, model, data, also_known, elsewhere).items():
                self.problem((*prefix, *place), message)
            return None

    def quietly(self, model: type[Model], data: Any) -> Model | None:
        """An instance of `model` from `data`; None if `data` is invalid, without adding problems."""
        try:
            return model.model_validate_json(json.dumps(data), strict=True)
        except ValidationError:
            return None

    def problem(self, place: Place, message: str) -> None:
        """Adds a problem at `place`, with the position of the nearest key above it that the file has."""
        marked = place
        while marked and marked not in self.marks:
            marked = marked[:-1]
        self.problems.append(f"{self.marks.get(marked, f'{self.path}:1:1')}: {'.'.join(map(str, place))}: {message}")

    def stop_on_problems(self) -> None:
        """Raises InputError with all problems so far, if there are any."""
        if self.problems:
            raise self.error()

    def error(self) -> InputError:
        """An error with all problems so far, one per line."""
        return InputError("\n".join(self.problems))

    def _plain(self, node: yaml.Node, place: Place, origin: str = "") -> Any:
        """Python values of a node; records the position of each key, and adds problems: duplicate keys, half characters."""
        if origin or place not in self.marks:  # an override's own, also where the file has a value there
            self.marks[place] = origin or f"{self.path}:{node.start_mark.line + 1}:{node.start_mark.column + 1}"
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
                self._whole_text(key, (*place, key))
                plain[key] = self._plain(value_node, (*place, key), origin)
            return plain
        value = _CoreLoader("").construct_object(node)
        self._whole_text(value, place)
        return value

    def _whole_text(self, value: Any, place: Place) -> None:
        if isinstance(value, str) and _HALF.search(value):
            self.problem(place, f"must be text of whole characters, got {value!r}")

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
    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        mark: Any = event.start_mark
        if self._depth > DEEPEST:
            problem = f"nested more than {DEEPEST} levels deep; recipes have a handful"
            raise yaml.composer.ComposerError(None, None, problem, mark)
        if isinstance(event, yaml.ScalarEvent) and not event.style and _DIGITS.fullmatch(event.value):
            problem = f"a number of {len(event.value)} digits; no option takes one that long"
            raise yaml.composer.ComposerError(None, None, problem, mark)
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise yaml.composer.ComposerError(None, None, "aliases are not allowed in recipes", mark)
        if getattr(event, "tag", None):
            raise yaml.composer.ComposerError(None, None, "tags are not allowed in recipes", mark)
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

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
