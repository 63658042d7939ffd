"""AMD in any trainer that parses its arguments, by two calls.

    shim.add_arguments(parser)                  # --objective NAME, and --NAME.OPTION for every option of every objective
    objective = shim.make_objective(args)       # an `amd_plugin.hookspecs.Objective`

The options are read off the objectives' signatures, those of plugins too, and checked as a recipe's are.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection
from typing import Any

import yaml

from amd_plugin.contract import refuse_what_is_missing
from amd_plugin.errors import InputError
from amd_plugin.hookspecs import EVERYTHING, Objective
from amd_plugin.options import checked, options_model
from amd_plugin.plugins import PluginManager, get_plugin_manager

_PREFIX = "distill"


def add_arguments(parser: argparse.ArgumentParser, plugins: PluginManager | None = None, default: str = "amd") -> None:
    """Adds a group of options to `parser`, which has none of these names yet.

    Args:
        parser: the trainer's own.
        plugins: where objectives are looked up; all that are installed, if None.
        default: the objective when none is named.
    """
    group = parser.add_argument_group(
        "distillation objective", "of any plugin; an option belongs to the objective before its dot"
    )
    factories = (plugins or get_plugin_manager()).objectives()
    group.add_argument(
        "--objective", default=default, choices=sorted(factories), help=f"what to train with [default: {default}]"
    )
    for name, factory in factories.items():
        for option, field in options_model(factory).model_fields.items():
            value = "required" if field.is_required() else f"default: {field.default}"
            group.add_argument(
                f"--{name}.{option}", dest=f"{_PREFIX}.{name}.{option}", metavar="VALUE", default=argparse.SUPPRESS,
                help=f"{field.description or ''} [{value}]".strip().replace("%", "%%"),
            )  # fmt: skip


def make_objective(
    args: argparse.Namespace, plugins: PluginManager | None = None, *, offers: Collection[str] = EVERYTHING, **host: Any
) -> Objective:  # fmt: skip
    """The objective that `args` ask for.

    Args:
        args: what the parser of `add_arguments` returned.
        plugins: as there.
        offers: names of the fields of `amd_plugin.hookspecs.Needs` that the trainer can give.
        host: options the trainer sets itself, e.g. ``guidance_scale``; they give way to the user's.

    Raises:
        InputError: naming the option that is out of range or belongs to another objective, or what the trainer does not offer.
    """
    plugins = plugins or get_plugin_manager()
    name = args.objective
    given: dict[str, Any] = {}
    for key, text in vars(args).items():
        if not key.startswith(f"{_PREFIX}."):
            continue
        owner, _, option = key.removeprefix(f"{_PREFIX}.").rpartition(".")
        if owner != name:
            raise InputError(f"--{owner}.{option}: belongs to objective '{owner}', but --objective is '{name}'. Leave one out")
        given[option] = _value(text)
    model = options_model(plugins.objective_factory(name))
    known = {option: value for option, value in host.items() if option in model.model_fields}
    options = checked(model, {**known, **given}, lambda option: f"--{name}.{option}" if option else f"--objective {name}")
    try:
        objective = plugins.make_objective(name, dict(options))
    except InputError as error:
        raise InputError(f"--{name}.{error}") from error
    refuse_what_is_missing(objective, offers)
    return objective


def _value(text: str) -> Any:
    """A number, a list, true, false, null or text, as YAML has it, and numbers with an exponent, which it takes for text."""
    try:
        value = yaml.safe_load(text)
        return float(value) if isinstance(value, str) else value
    except (ValueError, yaml.YAMLError):
        return text
