"""Copies of shipped recipes, for editing."""

from __future__ import annotations

from pathlib import Path

from amd_plugin.errors import InputError
from amd_plugin.recipe.loading import find


def copy(name_or_path: str, to: Path | None = None) -> list[Path]:
    """Copies a recipe, and the folder of launch scripts if the recipe mentions it.

    Args:
        name_or_path: name of a shipped recipe, or path of a YAML file.
        to: file or folder to write to; by default the recipe's file name in the current directory.

    Returns:
        Paths of the copies, the recipe first.

    Raises:
        InputError: if a file exists already, in which case nothing is written, or cannot be written.
    """
    source = find(name_or_path)
    target = to or Path(source.name)
    if target.is_dir():
        target = target / source.name
    launch = source.parent / "launch"
    copies = {source: target}
    if "launch/" in source.read_text() and launch.is_dir():
        copies |= {file: target.parent / "launch" / file.name for file in sorted(launch.iterdir()) if file.is_file()}
    for path in copies.values():
        if path.exists():
            raise InputError(f"{path}: exists already; nothing was touched")
    for file, path in copies.items():
        try:
            path.parent.mkdir(exist_ok=True)
            path.write_text(file.read_text())
        except OSError as error:
            raise InputError(f"{path}: cannot be written: {error}") from error
    return list(copies.values())
