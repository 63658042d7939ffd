"""Copies of shipped recipes, for editing."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from amd_plugin.atomic import write_text
from amd_plugin.errors import InputError
from amd_plugin.recipe.files import find

SCHEMA = "recipe.schema.json"


def copy(name_or_path: str, to: Path | None = None) -> list[Path]:
    """Copies a recipe with the schema that it names for editors, and the launch scripts if it mentions them.

    Args:
        name_or_path: name of a shipped recipe, or path of a YAML file.
        to: file to write, with the ending .yaml or .yml; anything else is a folder, which is made where it does not exist. By
            default the recipe's file name in the current directory.

    Returns:
        Paths of the copies, the recipe first.

    Raises:
        InputError: if a file exists already or cannot be read, in which case nothing is written, or cannot be written. A
            schema may be there.
    """
    source = find(name_or_path)
    target = to or Path(source.name)
    if target.is_dir() or target.suffix not in (".yaml", ".yml"):
        target = target / source.name
    launch, schema = source.parent / "launch", source.parent / SCHEMA
    copies, text = {source: target}, _read(source)
    if SCHEMA in text and schema.is_file() and not target.with_name(SCHEMA).exists():
        copies[schema] = target.with_name(SCHEMA)
    if "launch/" in text and launch.is_dir():
        copies |= {file: target.parent / "launch" / file.name for file in sorted(launch.iterdir()) if file.is_file()}
    for path in copies.values():
        if path.exists():
            raise InputError(f"{path}: exists already; nothing was touched")
    texts = {path: _renamed(_read(file), source, target) for file, path in copies.items()}
    for path, copied in texts.items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, copied)
        except OSError as error:
            raise InputError(f"{path}: cannot be written: {error}") from error
    return list(copies.values())


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot be read: {error}") from error


def _renamed(text: str, source: Path, target: Path) -> str:
    """`text` whose commands, and whose launch scripts, name the copy instead of its source."""
    if target.absolute() == Path(source.name).absolute():  # an edited file beside that name is refused
        return text
    command, name = r"(?:amd-plugin|amd_plugin\.cli) (?:train|compare|plan) ", re.escape(source.stem)
    return re.sub(
        rf"({command}){name}(?:\.yaml)?(?![\w.-])|{re.escape(source.name)}",
        lambda found: f"{found[1]}{shlex.quote(target.name)}" if found[1] else target.name,
        text,
    )
