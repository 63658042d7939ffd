"""Weights that come with the package, so that a recipe with slow teachers or judges starts at once.

Each file lies under ``shipped_weights/`` as safetensors in fp16, and its metadata says what it was made of: it is used for
exactly the settings it was trained with, and everything else is trained here. ``benchmarks/scenes_weights.py`` made them.
A file that is not the one in ``SHA256SUMS`` is not used. Code is no part of what a file was made of.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

FOLDER, SUMS = Path(__file__).with_name("shipped_weights"), "SHA256SUMS"

log = logging.getLogger(__name__)


def shipped(kind: str, made_of: Mapping[str, Any], folder: Path | None = None) -> Path | None:
    """The file of `kind` that was made of exactly `made_of`, as it was recorded; None where there is none."""
    file = (folder or FOLDER) / f"{kind}.safetensors"
    if not file.is_file():
        return None
    if recorded(file.parent).get(file.name) != sha256(file):
        log.warning("%s: is not the file that %s names, and is not used; install the package again", file, SUMS)
        return None
    with safe_open(file, "pt") as content:
        found = (content.metadata() or {}).get("made_of")
    return file if found == json.dumps(dict(made_of), sort_keys=True) else None


def recorded(folder: Path) -> dict[str, str]:
    """Name of each file in `folder` -> its SHA-256 as it was recorded; empty where nothing was."""
    file = folder / SUMS
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}


def read(file: Path) -> dict[str, Tensor]:
    """The tensors of a shipped file, in fp32 where they are numbers with a point."""
    return {name: value.float() if value.is_floating_point() else value for name, value in load_file(file).items()}


def write(file: Path, tensors: Mapping[str, Tensor], made_of: Mapping[str, Any]) -> None:
    """Writes `tensors` in fp16, with what they were made of."""
    half = {name: (value.half() if value.is_floating_point() else value).contiguous() for name, value in tensors.items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(half, file, metadata={"made_of": json.dumps(dict(made_of), sort_keys=True)})


def sha256(file: Path) -> str:
    """The SHA-256 of `file`."""
    return hashlib.sha256(file.read_bytes()).hexdigest()
