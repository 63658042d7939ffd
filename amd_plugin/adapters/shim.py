"""AMD in any trainer with argparse, by two calls.

    shim.add_arguments(parser)                  # --objective NAME, and --NAME.OPTION for every option of every objective
    objective = shim.make_objective(args)       # an `amd_plugin.hookspecs.Objective`

In a trainer whose settings are dataclasses, as those of TRL, `parse` takes the place of the first. It also reads a YAML file.

The options come from the objectives' signatures, also for objectives of plugins, and are checked as those of a recipe.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from amd_plugin.adapters.offers import OFFERS
from amd_plugin.contract import refuse_what_is_missing
from amd_plugin.errors import AmdPluginError, InputError
from amd_plugin.hookspecs import Objective
from amd_plugin.options import checked, options_model
from amd_plugin.plugins import PluginManager, get_plugin_manager


def add_arguments(parser: argparse.ArgumentParser, plugins: PluginManager | None = None, default: str = "amd") -> None:
    """Adds the group of options "distillation objective" to `parser`, which must not have options of these names.

    Args:
        parser: parser of the trainer.
        plugins: manager in which objectives are looked up; None stands for all installed plugins.
        default: name of the default objective.
    """
    group = parser.add_argument_group(
        "distillation objective", "objectives of all installed plugins; the name before an option's dot is its objective"
    )
    factories = (plugins or get_plugin_manager()).objectives()
    group.add_argument(
        "--objective", default=default, choices=sorted(factories), help=f"objective to train with [default: {default}]"
    )
    for name, factory in factories.items():
        for option, field in options_model(factory).model_fields.items():
            value = "required" if field.is_required() else f"default: {field.default}"
            group.add_argument(
                f"--{name}.{option}", metavar="VALUE", default=argparse.SUPPRESS,
                help=f"{field.description or ''} [{value}]".strip().replace("%", "%%"),
            )  # fmt: skip


def parse(
    *settings: type, plugins: PluginManager | None = None, default: str = "amd", args: Sequence[str] | None = None
) -> Any:  # fmt: skip
    """Settings of a trainer from its command line and its file ``--config FILE.yaml``, by TRL's `TrlParser`.

    Args:
        settings: dataclasses of the trainer's own settings, whose fields become options.
        plugins: manager in which objectives are looked up; None stands for all installed plugins.
        default: name of the default objective.
        args: words of the command line; None stands for this process's.

    Returns:
        One instance of every dataclass, and the namespace for `make_objective`.

    Exits with code 2 and a message, as argparse does, for options and files that cannot be used.
    """
    from trl import TrlParser  # type: ignore[attr-defined]  # a lazy export; brings transformers

    parser: Any = TrlParser(settings)  # type: ignore[arg-type]  # dataclasses, which have no type of their own
    add_arguments(parser, plugins, default)
    try:
        *own, objective = parser.parse_args_and_config(args)
    except (OSError, ValueError, IndexError, yaml.YAMLError) as error:
        parser.error(f"--config: {error}")
    return (*own, objective)


def make_objective(
    args: argparse.Namespace, plugins: PluginManager | None = None, *, offers: Collection[str] = OFFERS, **host: Any
) -> Objective:  # fmt: skip
    """The objective of parsed arguments.

    Args:
        args: result of the parser that `add_arguments` extended.
        plugins: manager in which the objective is looked up; None stands for all installed plugins.
        offers: names of the fields of `amd_plugin.hookspecs.Needs` that the trainer can give; by default those of all adapters.
        host: default values set by the trainer, e.g. ``guidance_scale``; the user's arguments override them.

    Raises:
        InputError: for an option out of range or of another objective, and for a need that the trainer does not offer.
    """
    plugins = plugins or get_plugin_manager()
    name = args.objective
    given: dict[str, Any] = {}
    known = plugins.objectives()
    for key, text in vars(args).items():
        owner, _, option = key.rpartition(".")
        if owner not in known:
            continue
        if owner != name:
            raise InputError(f"--{owner}.{option}: belongs to objective '{owner}', but --objective is '{name}'. Leave one out")
        given[option] = _value(text)
    model = options_model(plugins.objective_factory(name))
    defaults = {option: value for option, value in host.items() if option in model.model_fields}
    options = checked(model, {**defaults, **given}, lambda option: f"--{name}.{option}" if option else f"--objective {name}")
    try:
        objective = plugins.make_objective(name, dict(options))
    except InputError as error:
        raise InputError(f"--{name}.{error}") from error
    refuse_what_is_missing(objective, offers)
    return objective


@contextmanager
def exit_on_error() -> Iterator[None]:
    """A context in which an error of this package ends the process with a message and its exit code, as argparse does."""
    try:
        yield
    except AmdPluginError as error:
        sys.stderr.write(f"{Path(sys.argv[0]).name}: error: {error}\n")
        sys.exit(error.exit_code)


def _value(text: Any) -> Any:
    """The value of a YAML scalar or list; unlike in YAML 1.1, ``1e-5`` is a number. What a file has read already stays."""
    if not isinstance(text, str):
        return text
    try:
        value = yaml.safe_load(text)
        return float(value) if isinstance(value, str) else value
    except (ValueError, yaml.YAMLError):
        return text
