"""The list of files that an export leaves in its folder: it tells files of others from its own, and shows damage."""

from __future__ import annotations

import json
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from amd_plugin.atomic import write_text
from amd_plugin.checksums import changed, checksums
from amd_plugin.errors import InputError
from amd_plugin.json_files import read

FILE = "checksums.json"
MARK = "Distilled with `amd-plugin`"  # of the cards that an export writes
# What exports of earlier versions have written, which left no list, beside the parts that model_index.json names.
EARLIER = ("README.md", "samples.*", "curves.png", "model_index.json", "transformer", "scheduler", "lora", "*lora*.safetensors",
           "*_comfyui.safetensors")  # fmt: skip
NAMED = 3  # files of others in a message


class Exported(BaseModel):
    """The content of checksums.json.

    Attributes:
        files: file -> (bytes, checksum).
        complete: whether that is all of them; False while plugins add theirs.
    """

    files: dict[str, tuple[int, str]]
    complete: bool = True


def list_files(folder: Path, *, complete: bool = True) -> dict[str, tuple[int, str]]:
    """Writes the list of all files in `folder`, and returns it; see `Exported`."""
    files = {name: of_file for name, of_file in checksums(folder).items() if name != FILE}
    write_text(folder / FILE, json.dumps({"files": files, "complete": complete}, indent=1))
    return files


def check_replaceable(folder: Path, where: str = "") -> None:
    """Nothing, where an export may take the place of `folder`: it is missing or empty, or holds an earlier export alone.

    Args:
        folder: the folder that is to be written.
        where: where it was named, such as ``"--output "``.

    Raises:
        InputError: for anything else, all of which the export would remove.
    """
    try:
        if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
            kind = "a link, and a run writes in its own folder alone" if folder.is_symlink() else "no folder"
            raise InputError(f"{where}{folder}: is {kind}. Move it elsewhere, or choose another folder")
        others = _of_others(folder) if folder.exists() else []
    except OSError as error:
        raise InputError(f"{where}{folder}: cannot be read: {error.strerror or error}") from error
    if others:
        more = f" and {len(others) - NAMED} more" if len(others) > NAMED else ""
        names = ", ".join(others[:NAMED]) + more
        raise InputError(
            f"{where}{folder}: holds what no export has written: {names}. Move it elsewhere, or choose another folder"
        )


def problem(folder: Path) -> str:
    """What is wrong with the exported student in `folder`; empty where its files are as they were written."""
    try:
        exported = read(folder / FILE, Exported, "")
    except InputError as error:
        return str(error).removesuffix(". ")
    return changed(folder, exported.files) if exported.complete else "was not written to its end"


def is_of_earlier_version(folder: Path) -> bool:
    """Whether an earlier version, which left no list, exported what is in `folder`."""
    return not (folder / FILE).exists() and MARK in _card(folder)


def _of_others(folder: Path) -> list[str]:
    """What is in `folder` and not of an export, by names relative to it; parts of the tree that have no files do not count."""
    try:
        exported = read(folder / FILE, Exported, "")
    except InputError:
        return _beside_an_earlier_export(folder)
    files = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    names = sorted({path.relative_to(folder).as_posix() for path in files} - {*exported.files, FILE})
    return names if exported.complete else []


def _beside_an_earlier_export(folder: Path) -> list[str]:
    """As `_of_others`, of a folder without a list that can be read, as far as names say."""
    index = folder / "model_index.json"
    try:
        parts = [*read(index, dict[str, Any], "")] if index.is_file() else []
    except InputError:
        parts = []
    ours, known = MARK in _card(folder), (FILE, *parts)
    return sorted(
        path.name for path in folder.iterdir()
        if not (ours and (path.name in known or any(fnmatch(path.name, pattern) for pattern in EARLIER)))
    )  # fmt: skip


def _card(folder: Path) -> str:
    """The text of the card in `folder`; empty without one."""
    card = folder / "README.md"
    return card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
