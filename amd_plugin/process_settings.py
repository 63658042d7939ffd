"""What all code of a process shares: others' code may change it, and must not change it for anybody else.

A plugin that changes the working folder would move the run's files, which have relative paths; another default dtype, or
another number of threads, changes what networks compute. And a process that somebody's code forks must not go on with the run.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

from amd_plugin.errors import in_words

log = logging.getLogger(__name__)

_told: set[tuple[str, str]] = set()


class _Setting(NamedTuple):
    """A setting of the process: its value, and the function that gives it another."""

    value: Any
    put: Callable[[Any], object]


@contextmanager
def as_they_were(who: str) -> Iterator[None]:
    """Around others' code: puts back what it changes for the whole process, and says so once.

    In a thread nothing is put back, since the main thread may have changed it meanwhile. A process that is forked inside ends
    where it would come back, with the exit code that it would have had alone.

    Args:
        who: whose code it is, for the message, e.g. ``reward 'clip'``.
    """
    process = os.getpid()
    before = _settings() if threading.current_thread() is threading.main_thread() else {}
    try:
        yield
    except BaseException as end:
        if os.getpid() != process:
            _end_fork(who, end)
        raise
    else:
        if os.getpid() != process:
            _end_fork(who, None)
    finally:
        _put_back(before, who)


def _settings() -> dict[str, _Setting]:
    """The settings by their names; those of torch once it is imported, which lists of plugins do not wait for."""
    found = {}
    with suppress(OSError):  # it may have been deleted
        found["the working folder"] = _Setting(os.getcwd(), os.chdir)
    if (torch := sys.modules.get("torch")) is not None:
        found["torch's default dtype"] = _Setting(torch.get_default_dtype(), torch.set_default_dtype)
        # None is the same as the CPU, and free.
        found["torch's default device"] = _Setting(
            torch.get_default_device(), lambda device: torch.set_default_device(None if device.type == "cpu" else device)
        )
        found["torch's number of threads"] = _Setting(torch.get_num_threads(), torch.set_num_threads)
        found["whether torch keeps gradients"] = _Setting(torch.is_grad_enabled(), torch.set_grad_enabled)
        found["whether torch is deterministic"] = _Setting(
            torch.get_deterministic_debug_mode(), torch.set_deterministic_debug_mode
        )
    return found


def _put_back(before: dict[str, _Setting], who: str) -> None:
    now = _settings() if before else {}
    for name, (value, put) in before.items():
        if name in now and now[name].value == value:
            continue
        try:
            put(value)
        except OSError as error:  # the folder is gone; what is written next says so
            log.warning("%s: changed %s, which cannot be put back: %s", who, name, error)
            continue
        if (who, name) not in _told:
            _told.add((who, name))
            log.warning("%s: changed %s for the whole process; it was put back to %s", who, name, value)


def _end_fork(who: str, end: BaseException | None) -> None:
    """Ends this process, a copy that `who` has made of one that trains: going on, both would write the same files."""
    code = end.code if isinstance(end, SystemExit) else 1
    if not isinstance(end, SystemExit):
        log.warning("%s: a process that it forked %s; it ends", who, "came back" if end is None else f"raised {in_words(end)}")
    os._exit((0 if code is None else 1) if not isinstance(code, int) else code & 0xFF)
