"""Declarations of options, and validation of the values that a user gives them.

An option is a field of a model, with its type, default, bounds, one sentence, the paper's value and what it needs from a host:

    class Options(Strict):
        strength: float = option(0.5, "Adaptation strength s.", group="main", paper=0.5, ge=0, lt=1)

A factory decorated with `takes(Options)` shows them in its signature as keyword parameters. The declaration is the one source
of validation, the recipe schema, ``--help`` of trainers, the tables in the docs, and what a host refuses.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from copy import copy
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic.fields import FieldInfo

from amd_plugin.errors import InputError, OptionError, did_you_mean, in_words

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
    """A model without unknown keys, without NaN, and without conversions between text, numbers and booleans.

    Attributes:
        REMOVED: options that were removed, by name.
        ADDED: options that runs may have begun without, each with the value at which all is as it was.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)
    REMOVED: ClassVar[Mapping[str, Removed]] = {}
    ADDED: ClassVar[Mapping[str, Any]] = {}


class Removed(NamedTuple):
    """An option that was removed.

    Attributes:
        always: value with the behaviour that every objective has now; it is still accepted.
        advice: advice on what to use instead.
    """

    always: Any
    advice: str


class _Open(Strict):
    """A strict model that takes further keys, for a factory with ``**options``."""

    model_config = ConfigDict(extra="allow")


def option(
    default: Any, text: str, *, group: Group = "main", paper: Any = _UNSET, needs: str | None = None, **bounds: Any
) -> Any:
    """A field that declares an option.

    Args:
        default: default value.
        text: description for users, one plain sentence.
        group: group of the docs' tables that lists the option.
        paper: value in the paper's form, for an option of the paper.
        needs: field of `amd_plugin.hookspecs.Needs` that a host must offer for values other than the default; None for none.
        bounds: pydantic's ``ge``, ``gt``, ``le``, ``lt``.
    """
    more = {"group": group} | ({} if paper is _UNSET else {"paper": paper}) | ({} if needs is None else {"needs": needs})
    return Field(default, description=text, json_schema_extra=more, **bounds)


def metadata(field: FieldInfo) -> dict[str, Any]:
    """``group``, and ``paper`` and ``needs`` if they were given, of a field made by `option`; empty for any other field."""
    return dict(field.json_schema_extra) if isinstance(field.json_schema_extra, dict) else {}


def preset(name: str, model: type[Model], *, without: Collection[str] = (), **defaults: Any) -> type[Strict]:
    """A model with the options of `model`, except those in `without`, and with other `defaults`.

    Args:
        name: name of the new model.
        model: model with the declarations.
        without: names of options to leave out.
        defaults: new default values, by name.
    """
    fields: dict[str, Any] = {}
    for key, field in model.model_fields.items():
        if key not in without:
            changed = copy(field)
            changed.default = defaults.get(key, field.default)
            fields[key] = (field.annotation, changed)
    smaller = create_model(name, __base__=Strict, __module__=model.__module__, **fields)
    smaller.REMOVED, smaller.ADDED = getattr(model, "REMOVED", {}), getattr(model, "ADDED", {})
    return smaller


def takes(model: type[Strict]) -> Callable[[Call], Call]:
    """A decorator for a function or ``__init__``: its signature then shows the fields of `model` as keyword parameters."""

    def decorate(function: Call) -> Call:
        written = [p for p in inspect.signature(function).parameters.values() if p.kind is not p.VAR_KEYWORD]
        first = next(iter(model.model_fields))
        parameters = [p for p in written if p.name not in model.model_fields]
        for name, field in model.model_fields.items():
            kind = inspect.Parameter.POSITIONAL_OR_KEYWORD if name == first else inspect.Parameter.KEYWORD_ONLY
            parameters.append(inspect.Parameter(name, kind, default=field.default, annotation=field.annotation))
        function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        function.declared_options = model  # type: ignore[attr-defined]
        return function

    return decorate


def made(model: type[Model], given: Mapping[str, Any]) -> Model:
    """An instance of `model` from keyword arguments.

    Raises:
        OptionError: for the first argument that is unknown or out of range, by name.
    """
    try:
        return model(**without_removed(getattr(model, "REMOVED", {}), given))
    except ValidationError as error:
        place, message = next(iter(problems_of(error, model, given).items()))
        raise OptionError(str(place[0]), message) from error


def declared(factory: Callable[..., Any]) -> type[Strict] | None:
    """The model that decorates `factory`, a function or a class, by `takes`; None if there is none."""
    function = getattr(factory, "__init__") if isinstance(factory, type) else factory  # noqa: B009 (of the class itself)
    return getattr(function, "declared_options", None)


def options_model(factory: Callable[..., Any], *, ignore: Collection[str] = ()) -> type[BaseModel]:
    """A strict model of the keyword parameters of `factory`: the declared one, or one from names, annotations and defaults.

    Args:
        factory: any callable; a parameter without annotation takes any value.
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
        raise InputError(f"the signature of {factory!r} cannot be read: {in_words(error)}") from error
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
    """Names of the keyword parameters of a call of `function`; None if it takes any.

    For a torch module these are the parameters of `forward`; for a class, also for a module class, those of its constructor. A
    constructor with ``**options`` is assumed to pass them to its base classes, up to the first one without.
    """
    if not isinstance(function, type):
        explicit, takes_any = _keywords(inspect.signature(getattr(function, "forward", function)))
        return None if takes_any else explicit
    names: set[str] = set()
    for base in function.__mro__[:-1]:
        if "__init__" not in vars(base) and base is not function:
            continue
        signature = inspect.signature(function if base is function else vars(base)["__init__"])
        explicit, takes_any = _keywords(signature)
        names |= explicit - {"self"}
        if not takes_any:
            return names
    return None


def _keywords(signature: inspect.Signature) -> tuple[set[str], bool]:
    """Names of the keyword parameters, and whether further ones are taken."""
    parameters = signature.parameters.values()
    names = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return names, any(p.kind is p.VAR_KEYWORD for p in parameters)


def checked(model: type[Model], given: Mapping[str, Any], display_name: Callable[[str], str]) -> Model:
    """An instance of `model` from a user's values: lists count as tuples; numbers, text and booleans are not converted.

    Args:
        model: model with the declarations.
        given: values by option.
        display_name: function of an option's path to its name in messages, e.g. ``"--amd.strength"``.

    Raises:
        InputError: with a line for every option that is missing, unknown or wrong.
    """
    try:
        return model.model_validate_json(
            json.dumps(without_removed(getattr(model, "REMOVED", {}), given), default=repr), strict=True
        )
    except ValidationError as error:
        problems = problems_of(error, model, given)
        lines = [f"{display_name('.'.join(map(str, place)))}: {message}" for place, message in problems.items()]
        raise InputError("\n".join(lines)) from error


def without_removed(removed: Mapping[str, Removed], given: Mapping[str, Any]) -> dict[str, Any]:
    """`given` without removed options at the value that is still accepted; `problems_of` describes the others."""
    return {key: value for key, value in given.items() if key not in removed or value != removed[key].always}


def without_removed_in(model: type[BaseModel], given: Mapping[str, Any]) -> dict[str, Any]:
    """`given` for `model` without its removed options, and those of its sections, at the value that is still accepted."""
    kept = without_removed(getattr(model, "REMOVED", {}), given)
    for name, field in model.model_fields.items():
        section = kept.get(name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel) and isinstance(section, Mapping):
            kept[name] = without_removed_in(field.annotation, section)
    return kept


def _elsewhere(key: str, owner: type[BaseModel]) -> str:
    """A hint at the section of `owner` that has `key`, for somebody who left the section out; empty where none has."""
    for name, field in owner.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel) and key in section.model_fields:
            return f" Did you mean '{name}.{key}'?"
    return ""


def problems_of(
    error: ValidationError,
    model: type[BaseModel],
    data: Mapping[str, Any],
    also_known: Iterable[str] = (),
    elsewhere: Callable[[], Mapping[str, str]] = dict,
) -> dict[Place, str]:
    """Messages for people by place in `data`; one message for a value that may have one of several types.

    Args:
        error: error of the validation of `data` by `model`.
        model: model that validated.
        data: data that was validated.
        also_known: further names to suggest for an unknown key.
        elsewhere: function that gives the places of keys that no model declares: the options of an objective or a task.
    """
    problems: dict[Place, str] = {}
    wrong: dict[Place, list[str]] = {}
    values: dict[Place, Any] = {}
    for detail in error.errors():
        place: Place = detail["loc"]
        key = str(place[-1]) if place else ""
        if detail["type"] == "extra_forbidden":
            owner = _model_at(model, place[:-1])
            removed = getattr(owner, "REMOVED", {}).get(key)
            hint = did_you_mean(key, {*owner.model_fields, *also_known}) or _elsewhere(key, owner)
            if not hint and (there := elsewhere().get(key)):
                hint = f" Did you mean '{there}'?"
            problems[place] = f"unknown key.{hint}" if removed is None else f"was removed: {removed.advice}"
        elif detail["type"] == "missing":
            problems[place] = "required, but not given"
        else:
            place, values[place] = _value_at(data, place)
            wrong.setdefault(place, []).append(detail["msg"])
    return problems | {
        place: f"{_must(messages)}, got {values[place]!r}{_as_meant(model, place, values[place])}"
        for place, messages in wrong.items()
    }


# What pydantic calls the types of JSON, and people who write YAML do not.
_IN_YAML = {"a valid array": "a list", "an object": "keys with values"}


def _as_meant(model: type[BaseModel], place: Place, value: Any) -> str:
    """How to write one word or number that stands where a list or keys are needed; empty where that is not known."""
    if not place or isinstance(value, bool) or not re.fullmatch(r"[\w./-]+", str(value)):
        return ""
    is_list, text = False, str(value)
    with suppress(StopIteration, KeyError):  # of plain values
        if isinstance(key := place[-1], str):
            annotation = _model_at(model, place[:-1]).model_fields[key].annotation
            is_list = any(get_origin(kind) is list for kind in (annotation, *get_args(annotation)))
        needed = [name for name, field in _model_at(model, place).model_fields.items() if field.is_required()]
        if len(needed) != 1 or not isinstance(value, str):
            return ""
        text = f"{{{needed[0]}: {value}}}"
    text = f"[{text}]" if is_list else text
    return "" if text == str(value) else f". Write {text}"


def _must(messages: Iterable[str]) -> str:
    """``"must be a valid number or 'auto'"`` from pydantic's ``"Input should be a valid number"``, ``"... 'auto'"``."""
    texts = dict.fromkeys(f"{text[0].lower()}{text[1:]}".replace("input should be ", "must be ") for text in messages)
    for theirs, ours in _IN_YAML.items():
        texts = dict.fromkeys(text.replace(theirs, ours) for text in texts)
    first, *others = texts
    return " or ".join([first, *(text.removeprefix("must be ") for text in others)])


def _value_at(data: Mapping[str, Any], place: Place) -> tuple[Place, Any]:
    """The value at `place`, after its place in `data`: pydantic appends the name of the type that it tried."""
    data_place: Place = ()
    value: Any = data
    for key in place:
        is_key = isinstance(value, Mapping) and key in value
        if not is_key and not (isinstance(value, list | tuple) and isinstance(key, int) and key < len(value)):
            break
        data_place, value = (*data_place, key), value[key]
    return data_place, value


def _model_at(model: type[BaseModel], place: Place) -> type[BaseModel]:
    """The model at `place` inside `model`."""
    for step in place:
        if isinstance(step, int):
            continue
        annotation: Any = model.model_fields[step].annotation
        inner = [annotation, *get_args(annotation)]
        model = next(m for m in inner if isinstance(m, type) and issubclass(m, BaseModel))
    return model
