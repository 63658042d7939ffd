"""Files and folders that are written completely or not at all: under another name in the same place, then renamed.

What was written is on the disk before it is renamed, and the new name after, so that this holds for a loss of power too.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replaced_file(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """A path beside `path`, with the same suffix, to write to; renamed to `path` at the end of the block.

    Where the block raises, `path` keeps its old content. Several processes may write the same file: the last one wins.

    Args:
        path: file to write.
        durable: whether to wait for the disk; False for files that are written by the thousand and can be made anew.

    Raises:
        OSError: where the folder or the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield draft
        if durable:
            _wait_for_disk(draft)
        os.replace(draft, path)
        if durable:
            _wait_for_disk(path.parent)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def replaced_folder(path: Path) -> Iterator[Path]:
    """An empty folder beside `path` to fill; renamed to `path`, in place of what was there, at the end of the block.

    Where the block raises, `path` stays as it was. Only one process may write the same folder at a time.

    Raises:
        OSError: where the folder cannot be written.
    """
    draft = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        yield draft
        for entry in (*draft.rglob("*"), draft):
            _wait_for_disk(entry)
        shutil.rmtree(path, ignore_errors=True)
        os.replace(draft, path)
        _wait_for_disk(path.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Writes `text` to `path`, whole or not at all; raises OSError where it cannot be written."""
    with replaced_file(path) as draft:
        draft.write_text(text)


def write_bytes(path: Path, content: bytes) -> None:
    """Writes `content` to `path`, whole or not at all; raises OSError where it cannot be written."""
    with replaced_file(path) as draft:
        draft.write_bytes(content)


def _wait_for_disk(path: Path) -> None:
    """Returns when `path`, a file or a folder's list of names, is on the disk."""
    if path.is_symlink():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
