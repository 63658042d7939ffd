"""Recipes: from a YAML file and overrides to checked settings, with every problem at its line and column.

Nothing is trained or downloaded here, and no import path is ever read from a recipe.
"""

from amd_plugin.recipe.copying import copy
from amd_plugin.recipe.loading import Recipe, find, load, shipped

__all__ = ["Recipe", "copy", "find", "load", "shipped"]
