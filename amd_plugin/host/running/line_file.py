"""A file that grows by whole lines. What a full disk does not take waits in memory, and is tried again."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path

from amd_plugin.disk import NotWritten

log = logging.getLogger(__name__)


class LineFile:
    """Appends to a file.

    Args:
        path: the file, which ends with a whole line if it exists.
        count: number of lines in it.

    Attributes:
        count: number of lines, those that wait included.

    Raises:
        NotWritten: where it cannot be opened.
    """

    def __init__(self, path: Path, count: int):
        self._path, self.count = path, count
        self._waiting = b""
        self._warned = False
        try:
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise self._refused(error) from error

    def add(self, line: str) -> None:
        """Adds a line, which waits where the disk does not take it."""
        self.count += 1
        self._waiting += line.encode() + b"\n"
        try:
            self._write()
        except OSError as error:
            if not self._warned:
                log.warning("%s: cannot be written: %s; its lines wait for the next checkpoint", self._path, error.strerror)
            self._warned = True

    def settle(self) -> None:
        """Returns when all lines are on the disk; raises NotWritten where it does not take them, or the file is not there."""
        try:
            if not os.path.samestat(os.fstat(self._file.fileno()), self._path.stat()):
                raise FileNotFoundError(errno.ENOENT, "another file has taken its name")
            self._write()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._refused(error) from error

    def close(self) -> None:
        """Writes what waits, if it can be written, and closes the file."""
        try:
            self._write()
            self._file.close()
        except OSError as error:
            log.warning("%s: its last lines cannot be written: %s", self._path, error.strerror)

    def _write(self) -> None:
        whole = os.fstat(self._file.fileno()).st_size
        try:
            rest = memoryview(self._waiting)
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError:
            self._file.truncate(whole)  # no half line
            raise
        self._waiting = b""

    def _refused(self, error: OSError) -> NotWritten:
        return NotWritten(error.errno, error.strerror, str(self._path))
