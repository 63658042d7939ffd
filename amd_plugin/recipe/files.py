"""Which file a recipe is in: one that comes with the package, by its name, or a user's own, by its path."""

from __future__ import annotations

import os
from contextlib import suppress
from itertools import islice
from pathlib import Path

from amd_plugin.errors import InputError, did_you_mean

SHIPPED = [Path(__file__).parents[1] / "recipes", Path(__file__).parents[2] / "recipes"]


def shipped() -> dict[str, Path]:
    """Files of the recipes that come with the package, by name."""
    return {path.stem: path for folder in SHIPPED if folder.is_dir() for path in sorted(folder.glob("*.yaml"))}


def purpose(path: Path) -> str:
    """The sentence with which a recipe begins, from its comment."""
    first = path.read_text(encoding="utf-8").splitlines()[0]
    return first.lstrip("# ") if first.startswith("#") else ""


def find(name_or_path: str) -> Path:
    """The file of a shipped recipe's name, or of a path: what has a suffix .yaml or .yml, or a folder, is a path.

    Raises:
        InputError: if there is no such recipe, with the nearest name; and for a name beside whose recipe a file of that name
            lies here that differs from it, so that an edited copy is never passed over in silence.
    """
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml") or path.name != name_or_path:
        if os.path.isfile(path):  # also of a name that is too long
            return path
        own = shipped().get(path.stem)
        hint = f" The shipped recipe is called '{path.stem}'" if own else did_you_mean(str(path), _beside(path))
        raise InputError(f"recipe {name_or_path}: no such file.{hint}")
    recipes, files = shipped(), (f"{name_or_path}.yaml", f"{name_or_path}.yml")
    if name_or_path in recipes:
        there = recipes[name_or_path]
        for here in files:
            if os.path.isfile(here) and Path(here).read_bytes() != there.read_bytes():
                message = f"is the name of a shipped recipe, and the file {here} here differs from it"
                raise InputError(f"recipe '{name_or_path}': {message}. Write {here} for yours, or {there} for the shipped one")
        return there
    mine = [file for file in (f"./{name_or_path}", *files) if os.path.isfile(file)]
    hint = f" For the file, write {mine[0]}" if mine else did_you_mean(name_or_path, recipes)
    raise InputError(f"recipe '{name_or_path}': not one of {', '.join(recipes)}, nor a file (name.yaml).{hint}")


def _beside(path: Path) -> list[str]:
    """The first thousand YAML files in the folder of `path`; none where it cannot be read."""
    with suppress(OSError):
        return [str(file) for file in islice(path.parent.iterdir(), 1000) if file.suffix in (".yaml", ".yml")]
    return []
