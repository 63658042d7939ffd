"""What to write for a recipe's key that was given as an option of a command: `--max_steps 4`, `--train.max_steps 4`."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel
from typer.core import TyperCommand

from amd_plugin.config import RecipeConfig


class TakesSet(TyperCommand):
    """A command with `--set`, which names it where somebody has given a recipe's key as an option."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As of the base class; an error about an unknown option that is a key says how to set it."""
        try:
            return super().parse_args(ctx, args)
        except Exception as error:  # click's, of which typer has a copy in some versions
            option, near = getattr(error, "option_name", ""), getattr(error, "possibilities", None) or []
            misspelt = get_close_matches(option, near, cutoff=0.8)  # click's own suggestions may be far
            if option and not misspelt and (keys := keys_called(option)):
                error.message += f". In a recipe it is {' or '.join(keys)}: give --set {keys[0]}=VALUE"  # type: ignore[attr-defined]
                error.possibilities = []  # type: ignore[attr-defined]
            raise


def keys_called(option: str) -> list[str]:
    """The keys of recipes that `option` may mean, with or without their section, and with - for _; empty for none."""
    word = option.lstrip("-").replace("-", "_")
    if not word:
        return []
    from amd_plugin.options import accepted  # which take seconds to import
    from amd_plugin.plugins import get_plugin_manager
    from amd_plugin.tasks import TASKS

    keys = [section for section, field in RecipeConfig.model_fields.items() if not _keys(section, field.annotation)]
    keys += [key for section, field in RecipeConfig.model_fields.items() for key in _keys(section, field.annotation)]
    sections = (("objective", get_plugin_manager().objectives()), ("data", TASKS))
    keys += [
        f"{section}.{name}"
        for section, factories in sections
        for factory in factories.values()
        for name in accepted(factory) or ()
    ]
    return [key for key in dict.fromkeys(keys) if word in (key, key.rpartition(".")[2])]


def _keys(section: str, annotation: object) -> list[str]:
    if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        return []
    return [f"{section}.{name}" for name in annotation.model_fields]
