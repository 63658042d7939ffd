"""Files and folders that are written completely or not at all: under another name in the same place, then renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replaced_file(path: Path) -> Iterator[Path]:
    """A path beside `path`, with the same suffix, to write to; renamed to `path` at the end of the block.

    Where the block raises, `path` keeps its old content. Several processes may write the same file: the last one wins.

    Raises:
        OSError: where the folder or the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield draft
        os.replace(draft, path)
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
        shutil.rmtree(path, ignore_errors=True)
        os.replace(draft, path)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
