"""Options: declared once, and what a user wrote for them, checked.

An option is a field of a model, with its type, default, bounds, one sentence, the paper's value and what it needs of a host:

    class Options(Strict):
        strength: float = option(0.5, "Adaptation strength s.", group="main", paper=0.5, ge=0, lt=1)

A factory decorated with `takes(Options)` has them as keyword parameters, so that whoever reads its signature finds all of it.
From here come validation, the recipe schema, ``--help`` of trainers, the tables in the docs, and what a host refuses.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Collection, Iterable, Mapping
from copy import copy
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic.fields import FieldInfo

from amd_plugin.errors import InputError, OptionError, did_you_mean

Group = Literal["main", "regime", "paper", "expert"]
GROUPS: dict[Group, str] = {
    "main": "what most users set",
    "regime": "follows the guidance scale and the reward",
    "paper": "the paper's form",
    "expert": "for experts",
}

Place = tuple[str | int, ...]
Call = TypeVar("Call", bound=Callable[..., Any])
Model = TypeVar("Model", bound=BaseModel)

_UNSET: Any = object()


class Strict(BaseModel):
    """A model without unknown keys, without NaN, and without conversions between text, numbers and booleans."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)
    REMOVED: ClassVar[Mapping[str, Removed]] = {}


class Removed(NamedTuple):
    """An option that is gone.

    Attributes:
        always: the value that stands for what is always done now, and is still accepted.
        advice: what to use instead.
    """

    always: Any
    advice: str


class _Open(Strict):
    """The same for a factory with ``**options``, which takes any further key."""

    model_config = ConfigDict(extra="allow")


def option(
    default: Any, text: str, *, group: Group = "main", paper: Any = _UNSET, needs: str | None = None, **bounds: Any
) -> Any:
    """A field with all that is known of an option.

    Args:
        default: its value where nobody says anything.
        text: one plain sentence for users.
        group: where it is shown.
        paper: its value in the paper's form, where that differs from the default.
        needs: the field of `amd_plugin.hookspecs.Needs` that a host must offer, if any.
        bounds: pydantic's ``ge``, ``gt``, ``le``, ``lt``.
    """
    more = {"group": group} | ({} if paper is _UNSET else {"paper": paper}) | ({} if needs is None else {"needs": needs})
    return Field(default, description=text, json_schema_extra=more, **bounds)


def metadata(field: FieldInfo) -> dict[str, Any]:
    """``group``, and where they are given ``paper`` and ``needs``, of a field made by `option`; empty for another field."""
    return dict(field.json_schema_extra) if isinstance(field.json_schema_extra, dict) else {}


def preset(name: str, model: type[Model], *, without: Collection[str] = (), **defaults: Any) -> type[Strict]:
    """`model` under another name, with other `defaults` and `without` some of its options."""
    fields: dict[str, Any] = {}
    for key, field in model.model_fields.items():
        if key not in without:
            changed = copy(field)
            changed.default = defaults.get(key, field.default)
            fields[key] = (field.annotation, changed)
    smaller = create_model(name, __base__=Strict, __module__=model.__module__, **fields)
    smaller.REMOVED = getattr(model, "REMOVED", {})
    return smaller


def takes(model: type[Strict]) -> Callable[[Call], Call]:
    """Decorates a function or ``__init__`` so that its signature shows the fields of `model` as its keyword parameters."""

    def decorate(function: Call) -> Call:
        own = [p for p in inspect.signature(function).parameters.values() if p.kind is not p.VAR_KEYWORD]
        first = next(iter(model.model_fields))
        parameters = [p for p in own if p.name not in model.model_fields]
        for name, field in model.model_fields.items():
            kind = inspect.Parameter.POSITIONAL_OR_KEYWORD if name == first else inspect.Parameter.KEYWORD_ONLY
            parameters.append(inspect.Parameter(name, kind, default=field.default, annotation=field.annotation))
        function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        function.declared_options = model  # type: ignore[attr-defined]
        return function

    return decorate


def made(model: type[Model], given: Mapping[str, Any]) -> Model:
    """The `model` of keyword arguments.

    Raises:
        OptionError: for the first that is unknown or out of range, by name.
    """
    try:
        return model(**without_removed(model, given))
    except ValidationError as error:
        place, message = next(iter(problems_of(error, model, given).items()))
        raise OptionError(str(place[0]), message) from error


def declared(factory: Callable[..., Any]) -> type[Strict] | None:
    """The model that `factory`, a function or a class, was decorated with; None for a signature of its own."""
    function = getattr(factory, "__init__") if isinstance(factory, type) else factory  # noqa: B009 (a class's own is meant)
    return getattr(function, "declared_options", None)


def options_model(factory: Callable[..., Any], *, ignore: Collection[str] = ()) -> type[BaseModel]:
    """A strict model of `factory`'s keyword parameters: the declared one, or one made of names, annotations and defaults.

    Args:
        factory: any callable; a parameter without annotation takes anything.
        ignore: names of parameters that the host fills in.

    Raises:
        InputError: if the signature's annotations cannot be evaluated.
    """
    if (model := declared(factory)) is not None:
        return preset(model.__name__, model, without=ignore) if ignore else model
    fields: dict[str, Any] = {}
    try:
        parameters = inspect.signature(factory, eval_str=True).parameters.values()
    except Exception as error:
        raise InputError(f"the signature of {factory!r} cannot be read: {type(error).__name__}: {error}") from error
    for parameter in parameters:
        if parameter.name in ignore or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        annotation = Any if parameter.annotation is parameter.empty else parameter.annotation
        fields[parameter.name] = (annotation, ... if parameter.default is parameter.empty else parameter.default)
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters)
    try:
        return create_model("Options", __base__=_Open if open_ended else Strict, **fields)
    except Exception as error:
        raise InputError(f"the parameters of {factory!r} cannot be checked: {error}") from error


def accepted(function: Callable[..., Any]) -> set[str] | None:
    """Names of the keyword parameters `function` takes when called; None where it takes any.

    A torch module's call is its `forward`; a class's is its constructor, that of a module class too. One that takes any and is
    a class passes them on to its bases, as far as the first that names what it takes.
    """
    if not isinstance(function, type):
        return _named(inspect.signature(getattr(function, "forward", function)))[0]
    names: set[str] = set()
    for base in function.__mro__[:-1]:
        if "__init__" not in vars(base) and base is not function:
            continue
        signature = inspect.signature(function if base is function else vars(base)["__init__"])
        every, explicit = _named(signature)
        if every is not None:
            return names | every - {"self"}
        names |= explicit - {"self"}
    return None


def _named(signature: inspect.Signature) -> tuple[set[str] | None, set[str]]:
    """Names of the keyword parameters, None where any is taken; and those that are named all the same."""
    parameters = signature.parameters.values()
    names = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return (None if any(p.kind is p.VAR_KEYWORD for p in parameters) else names), names


def checked(model: type[Model], given: Mapping[str, Any], where: Callable[[str], str]) -> Model:
    """The `model` of what a user wrote: a list may be a tuple; numbers, words and booleans do not turn into each other.

    Args:
        where: path of an option -> how the user knows it, e.g. ``"--amd.strength"``.

    Raises:
        InputError: with a line for every option that is missing, unknown or wrong.
    """
    try:
        return model.model_validate_json(json.dumps(without_removed(model, given), default=repr), strict=True)
    except ValidationError as error:
        problems = problems_of(error, model, given)
        lines = [f"{where('.'.join(map(str, place)))}: {message}" for place, message in problems.items()]
        raise InputError("\n".join(lines)) from error


def without_removed(model: type[BaseModel], given: Mapping[str, Any]) -> dict[str, Any]:
    """`given` without removed options that ask for what is always done now; others are left for `problems_of` to name."""
    gone = getattr(model, "REMOVED", {})
    return {key: value for key, value in given.items() if key not in gone or value != gone[key].always}


def problems_of(
    error: ValidationError, model: type[BaseModel], data: Mapping[str, Any], also_known: Iterable[str] = ()
) -> dict[Place, str]:
    """Where in `data` something is wrong -> what it should be, in words; one entry where it may be one of several kinds.

    Args:
        error: what the validation of `data` by `model` raised.
        also_known: names beside the model's own that an unknown key may have been meant to be.
    """
    problems: dict[Place, str] = {}
    wrong: dict[Place, list[str]] = {}
    values: dict[Place, Any] = {}
    for detail in error.errors():
        place: Place = detail["loc"]
        key = str(place[-1]) if place else ""
        if detail["type"] == "extra_forbidden":
            gone = getattr(model, "REMOVED", {}).get(key)
            hint = did_you_mean(key, {*_keys_at(model, place[:-1]), *also_known})
            problems[place] = f"unknown key.{hint}" if gone is None else f"was removed: {gone.advice}"
        elif detail["type"] == "missing":
            problems[place] = "required, but not given"
        else:
            place, values[place] = _value_at(data, place)
            wrong.setdefault(place, []).append(detail["msg"])
    return problems | {place: f"{_must(messages)}, got {values[place]!r}" for place, messages in wrong.items()}


def _must(messages: Iterable[str]) -> str:
    """Pydantic's "Input should be a valid number", "Input should be 'auto'" as "must be a valid number or 'auto'"."""
    said = dict.fromkeys(f"{text[0].lower()}{text[1:]}".replace("input should be ", "must be ") for text in messages)
    first, *others = said
    return " or ".join([first, *(text.removeprefix("must be ") for text in others)])


def _value_at(data: Mapping[str, Any], place: Place) -> tuple[Place, Any]:
    """The value at `place` and its own place; what follows the value itself names the kind that was tried."""
    at: Place = ()
    value: Any = data
    for key in place:
        inside = isinstance(value, Mapping) and key in value
        if not inside and not (isinstance(value, list | tuple) and isinstance(key, int) and key < len(value)):
            break
        at, value = (*at, key), value[key]
    return at, value


def _keys_at(model: type[BaseModel], place: Place) -> list[str]:
    """Names of the fields of the model that stands at `place` inside `model`."""
    for step in place:
        if isinstance(step, int):
            continue
        annotation: Any = model.model_fields[step].annotation
        inner = [annotation, *get_args(annotation)]
        model = next(m for m in inner if isinstance(m, type) and issubclass(m, BaseModel))
    return list(model.model_fields)


def values_of(annotation: Any) -> str:
    """The values that a type admits, in words, e.g. ``"number in [0, 1) or auto"``."""
    if annotation is None or annotation is type(None):
        return "null"
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        bounds = [limit for info in inner[1:] if isinstance(info, FieldInfo) for limit in info.metadata]
        return values_of(inner[0]) + _interval(bounds)
    if origin is Literal:
        return ", ".join(map(str, inner))
    if origin is tuple:
        return "[low, high]"
    if inner:
        return " or ".join(map(values_of, inner))
    return {float: "number", int: "integer", bool: "true, false", str: "text"}.get(annotation, "any value")


def _interval(bounds: Iterable[Any]) -> str:
    at = {name: getattr(bound, name) for bound in bounds for name in ("ge", "gt", "le", "lt") if hasattr(bound, name)}
    low, high = at.get("ge", at.get("gt")), at.get("le", at.get("lt"))
    if low is None and high is None:
        return ""
    if high is None:
        return f" of at least {low:g}" if "ge" in at else f" above {low:g}"
    return f" in {'[' if 'ge' in at else '('}{low:g}, {high:g}{']' if 'le' in at else ')'}"


def table(model: type[BaseModel], group: Group | None = None, *, without: Collection[str] = ()) -> str:
    """The options of `model`, those of `group` if given, as a Markdown table."""
    lines = ["| option | values | default | the paper's | meaning |", "|---|---|---|---|---|"]
    for name, field in model.model_fields.items():
        about = metadata(field)
        if name in without or group not in (None, about.get("group")):
            continue
        words = (values_of(field.annotation) + _interval(field.metadata), _plain(field.default), _plain(about.get("paper", "")))
        lines.append(f"| `{name}` | {' | '.join(words)} | {field.description} |")
    return "\n".join(lines)


def _plain(value: Any) -> str:
    """A value as a recipe has it."""
    return value if isinstance(value, str) else json.dumps(value)
