"""One process at a time works in a folder. Another one is told who does.

The lock is the operating system's and ends with its process, however that ends. The file beside it only says who holds it.
"""

from __future__ import annotations

import os
import shlex
import socket
import sys
import time
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import BaseModel

from amd_plugin.atomic import check_no_way_out, write_text
from amd_plugin.disk import output_refused
from amd_plugin.errors import InputError
from amd_plugin.json_files import read

LOCK, HOLDER = ".lock", ".holder.json"


class Holder(BaseModel):
    """Who holds a lock.

    Attributes:
        host, process: machine and process id.
        since: time at which it began.
        command: command line.
    """

    host: str
    process: int
    since: str
    command: str


class FolderLock:
    """The right to write to a folder.

    Args:
        folder: the folder.
    """

    def __init__(self, folder: Path):
        self._folder, self._lock = folder, FileLock(folder / LOCK, timeout=0)

    @property
    def held(self) -> bool:
        """Whether this process has it."""
        return bool(self._lock.is_locked)

    def acquire(self) -> None:
        """Takes the lock, if this process has not got it yet. The folder must exist.

        Raises:
            InputError: where another process has it, the folder cannot be written, or a link in it leads to another one.
        """
        if self.held:
            return
        check_no_way_out(self._folder)
        try:
            self._lock.acquire()
            now = time.strftime("%Y-%m-%d %H:%M:%S")
            holder = Holder(host=socket.gethostname(), process=os.getpid(), since=now, command=_command())
            write_text(self._folder / HOLDER, holder.model_dump_json())
        except Timeout as error:
            advice = "Wait for it, end it, or choose another folder"
            raise InputError(f"--output {self._folder}: {self._holder()} is at work in it. {advice}") from error
        except OSError as error:
            raise output_refused(error) from error

    def release(self) -> None:
        """Gives the lock back."""
        if self.held:
            (self._folder / HOLDER).unlink(missing_ok=True)
            self._lock.release()

    def _holder(self) -> str:
        try:
            holder = read(self._folder / HOLDER, Holder, "")
        except InputError:  # between its lock and its note
            return "another process"
        return f"process {holder.process} on {holder.host}, since {holder.since} ({holder.command}),"


def _command() -> str:
    return shlex.join(sys.argv)[:500].encode(errors="replace").decode()


def is_lock(path: Path) -> bool:
    """Whether `path` is a file of a lock."""
    return path.name in (LOCK, HOLDER)
