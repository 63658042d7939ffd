"""Files and folders that are written completely or not at all: under another name in the same place, then renamed.

What was written is on the disk before it is renamed, and the new name after, so that this holds for a loss of power too.
A draft carries its process in its name: several may write the same thing, and the drafts of a killed one are recognised.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from amd_plugin.disk import NotWritten, number
from amd_plugin.errors import InputError


def host_name() -> str:
    """A name for where this process's number means this process: its machine, or its container on that.

    Names of pods are long and differ at their end, containers of a machine may share its name, and each counts its processes
    from 1; a disk may be common to all of them.
    """
    try:
        numbered_in = str(os.stat("/proc/self/ns/pid").st_ino)
    except OSError:  # no Linux
        numbered_in = ""
    name = socket.gethostname()
    digest = hashlib.sha256(f"{name} {numbered_in}".encode()).hexdigest()[:12]
    return re.sub(r"\W", "_", name)[:20] + "_" + digest


HOST = host_name()
LONGEST = 100  # bytes of a name that its draft keeps; a name may have 255

# Of drafts, and of folders that are put aside for the moment in which a new one takes their name.
_DRAFT = re.compile(r"\.(?P<name>.*)\.(?P<host>\w+)-(?P<process>\d+)\.(?P<kind>tmp|old)(\.\w+)?")


@contextmanager
def replaced_file(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """A path beside `path`, with the same suffix, to write to; renamed to `path` at the end of the block.

    Where the block raises, `path` keeps its old content. Several processes may write the same file: the last one wins.

    Args:
        path: file to write.
        durable: whether to wait for the disk; False for files that are written by the thousand and can be made anew.

    Raises:
        NotWritten: where the folder or the file cannot be written.
    """
    draft = _beside(path, "tmp", path.stem, path.suffix)
    with _written(path, draft):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield draft
            if durable:
                _wait_for_disk(draft)
            os.replace(draft, path)
            if durable:
                _wait_for_disk(path.parent)
        finally:
            with suppress(OSError):
                draft.unlink(missing_ok=True)


@contextmanager
def replaced_folder(path: Path) -> Iterator[Path]:
    """An empty folder beside `path` to fill; renamed to `path`, in place of what was there, at the end of the block.

    Where the block raises, `path` stays as it was. Several processes may write the same folder: the last one wins.

    Raises:
        NotWritten: where the folder or something in it cannot be written.
    """
    draft = _beside(path, "tmp", path.name)
    with _written(path, draft):
        sweep(path.parent)
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        try:
            yield draft
            for entry in (*draft.rglob("*"), draft):
                _wait_for_disk(entry)
            _take_place(draft, path)
            _wait_for_disk(path.parent)
        finally:
            shutil.rmtree(draft, ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Removes a folder, or leaves it whole where it cannot be renamed. What a process that is killed leaves is `sweep`'s."""
    draft = _beside(path, "tmp", path.name)
    shutil.rmtree(draft, ignore_errors=True)
    with suppress(OSError):
        os.replace(path, draft)
        shutil.rmtree(draft, ignore_errors=True)


@contextmanager
def _written(path: Path, draft: Path) -> Iterator[None]:
    """Gives a failure to write `draft` the name of `path`; failures to read something else pass."""
    try:
        yield
    except NotWritten as error:  # of a file within a folder's draft, by its draft's name
        if draft in Path(error.filename).parents:
            raise NotWritten(error.errno, error.strerror, str(path)) from error
        raise
    except Exception as error:
        code, other = number(error), getattr(error, "filename", None)
        ours = (
            other is None
            or Path(os.fsdecode(other)) in (draft, path, *path.parents)
            or draft in Path(os.fsdecode(other)).parents
        )
        if not code or not ours:
            raise
        raise NotWritten(code, os.strerror(code), str(path)) from error


def write_text(path: Path, text: str) -> None:
    """Writes `text` to `path`, whole or not at all; raises NotWritten where it cannot be written."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Writes `content` to `path`, whole or not at all; raises NotWritten where it cannot be written."""
    with replaced_file(path) as draft:
        draft.write_bytes(content)


def check_inside(path: Path, folder: Path) -> None:
    """Nothing, where what is written to `path` lands in `folder`, which may be a link itself.

    Raises:
        InputError: where a link in a stranger's folder, or a name, leads out of it.
    """
    try:
        inside = path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # a link to itself
        inside = False
    if not inside:
        advice = "Put what the link leads to in its place, or remove it"
        raise InputError(f"{path}: leads out of {folder} by a link, and commands write inside of that alone. {advice}")


def check_no_way_out(folder: Path) -> None:
    """Nothing, where no link below `folder` leads out of it; raises InputError for one that does, as `check_inside`."""
    for place, folders, files in os.walk(folder):
        for path in (Path(place, name) for name in (*folders, *files)):
            if path.is_symlink():
                check_inside(path, folder)


def is_draft(path: Path) -> bool:
    """Whether `path` is something half written, by its name."""
    return _DRAFT.fullmatch(path.name) is not None


def sweep(folder: Path, *, alone: bool = False) -> None:
    """Removes what processes that were killed left half written in `folder`.

    A folder that was put aside for a new one that never came gets its name back.

    Args:
        folder: the folder, which may be missing.
        alone: whether nobody else writes to it, as a lock says. Else only processes of this machine count, of which it is known
            that they have ended.
    """
    for entry in folder.iterdir() if folder.is_dir() else ():
        draft = _DRAFT.fullmatch(entry.name)
        if draft is None or not (alone or (draft["host"] == HOST and not _lives(int(draft["process"])))):
            continue
        home = entry.with_name(draft["name"])
        with suppress(OSError):  # another process sweeps too
            if draft["kind"] == "old" and not home.exists():
                os.replace(entry, home)
            elif entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()


def _beside(path: Path, kind: str, name: str, suffix: str = "") -> Path:
    short = name.encode()[:LONGEST].decode(errors="ignore")
    return path.with_name(f".{short}.{HOST}-{os.getpid()}.{kind}{suffix}")


def _take_place(draft: Path, path: Path) -> None:
    """Renames the folder `draft` to `path`, whatever other processes do to `path` at the same time."""
    aside = _beside(path, "old", path.name)
    while True:
        shutil.rmtree(aside, ignore_errors=True)
        with suppress(FileNotFoundError):
            if path.is_symlink():  # it goes, as a link in a file's place does, and what it leads to stays
                path.unlink()
            elif path.is_dir():
                os.replace(path, aside)
        try:
            os.replace(draft, path)
            break
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
    shutil.rmtree(aside, ignore_errors=True)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def _wait_for_disk(path: Path) -> None:
    """Returns when `path`, a file or a folder's list of names, is on the disk."""
    if path.is_symlink():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
