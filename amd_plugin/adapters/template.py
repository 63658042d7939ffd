"""A new adapter: three files that pass the conformance tests as they are, on a toy in place of the host."""

from __future__ import annotations

import keyword
from importlib.resources import files
from pathlib import Path

from amd_plugin.atomic import write_text
from amd_plugin.errors import InputError

PARTS = ("toy", "adapter", "conformance")


def write_adapter(name: str, folder: Path) -> list[Path]:
    """Writes ``NAME_toy.py``, ``NAME_adapter.py`` and ``NAME_conformance.py``.

    Args:
        name: name of the host, as Python imports it.
        folder: folder to write to.

    Returns:
        The files.

    Raises:
        InputError: for a name that cannot be imported, or a file that is there already.
    """
    if not name.isidentifier() or keyword.iskeyword(name):
        raise InputError(f"host new: must be the name of a module, such as my_trainer, got '{name}'")
    written = [folder / f"{name}_{part}.py" for part in PARTS]
    if there := [file.name for file in written if file.exists()]:
        raise InputError(f"host new: {', '.join(there)} is there already. Choose another name, or another folder")
    for part, file in zip(PARTS, written, strict=True):
        text = (files("amd_plugin") / "templates" / "adapter" / f"{part}.py.txt").read_text(encoding="utf-8")
        write_text(file, text.replace("NAME", name))
    return written
