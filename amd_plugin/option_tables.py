"""Markdown tables of declared options, for the docs."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Collection, Iterable
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from amd_plugin.options import Group, metadata

LONGEST = 80  # characters of a default that a table of keys shows


def table(model: type[BaseModel], group: Group | None = None, *, without: Collection[str] = ()) -> str:
    """A Markdown table of the options of `model`.

    Args:
        model: model with the declarations.
        group: group whose options are listed; None for all.
        without: names of options to leave out.
    """
    lines = ["| option | values | default | the paper's | meaning |", "|---|---|---|---|---|"]
    for name, field in model.model_fields.items():
        declaration = metadata(field)
        if name in without or group not in (None, declaration.get("group")):
            continue
        values = values_of(field.annotation) + _interval(field.metadata)
        cells = (values, _as_written(field.default), _as_written(declaration.get("paper", "")))
        lines.append(f"| `{name}` | {' | '.join(cells)} | {field.description} |")
    return "\n".join(lines)


def keys(model: type[BaseModel], described: Callable[..., Any] | None = None) -> str:
    """A Markdown table of the keys of a recipe's section.

    Args:
        model: model of the section.
        described: function or class whose docstring has the meaning of keys without a description of their own.
    """
    meanings = {} if described is None else arguments(described)
    lines = ["| key | values | default | meaning |", "|---|---|---|---|"]
    for name, field in model.model_fields.items():
        first, *others = values_of(field.annotation).split(" or ")
        values = " or ".join([first + _interval(field.metadata), *others])
        default = "required" if field.is_required() else _as_written(field.get_default(call_default_factory=True)) or '""'
        default = default if len(default) <= LONGEST else f"{default[:LONGEST]}..."
        cells = (values, default, field.description or meanings.get(name, ""))
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def arguments(function: Callable[..., Any]) -> dict[str, str]:
    """Parameter -> its line under ``Args:`` in the docstring of a function or a class."""
    section = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", inspect.getdoc(function) or "", re.DOTALL | re.MULTILINE)
    entries = re.findall(r"^    (\w[\w, ]*): (.*(?:\n     +.*)*)", section[1] if section else "", re.MULTILINE)
    lines = {names: " ".join(text.replace("``", "`").split()).removesuffix(".") for names, text in entries}
    return {name: text for names, text in lines.items() for name in names.split(", ")}


def values_of(annotation: Any) -> str:
    """The values of a type, in words, e.g. ``"number in [0, 1) or auto"``."""
    if annotation is None or annotation is type(None):
        return "null"
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        bounds = [bound for argument in arguments[1:] if isinstance(argument, FieldInfo) for bound in argument.metadata]
        return values_of(arguments[0]) + _interval(bounds)
    if origin is Literal:
        return ", ".join(map(str, arguments))
    if origin is tuple:
        if ... not in arguments:
            return "[low, high]" if values_of(arguments[0]) == "number" else "two values"
    if origin in (list, tuple):
        return f"list of {values_of(arguments[0])}"
    if origin is dict or (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        return "keys of its own"
    if arguments:
        return " or ".join(map(values_of, arguments))
    return {float: "number", int: "integer", bool: "true, false", str: "text"}.get(annotation, "any value")


def _interval(bounds: Iterable[Any]) -> str:
    limits = {name: getattr(bound, name) for bound in bounds for name in ("ge", "gt", "le", "lt") if hasattr(bound, name)}
    low, high = limits.get("ge", limits.get("gt")), limits.get("le", limits.get("lt"))
    if low is None and high is None:
        return ""
    if high is None:
        return f" of at least {low:g}" if "ge" in limits else f" above {low:g}"
    return f" in {'[' if 'ge' in limits else '('}{low:g}, {high:g}{']' if 'le' in limits else ')'}"


def _as_written(value: Any) -> str:
    """A value as it is written in a recipe."""
    if isinstance(value, BaseModel):
        return "its defaults"
    return value if isinstance(value, str) else json.dumps(value)
