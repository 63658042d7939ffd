"""Recipes: from a YAML file and overrides to checked settings, with every problem at its line and column.

Nothing is trained or downloaded here, and no import path is ever read from a recipe. The names below are imported when they are
used: a list of recipes needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from amd_plugin.recipe.copying import copy
    from amd_plugin.recipe.files import find, purpose, shipped
    from amd_plugin.recipe.loading import Recipe, load

__all__ = ["Recipe", "copy", "find", "load", "purpose", "shipped"]

_HOME = {"Recipe": "loading", "copy": "copying", "find": "files", "load": "loading", "purpose": "files", "shipped": "files"}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"amd_plugin.recipe.{_HOME[name]}"), name)
    raise AttributeError(f"module 'amd_plugin.recipe' has no attribute {name!r}")
