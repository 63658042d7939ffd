"""Child processes of reliability.py: how one begins, how it is struck at a chosen moment, how it ended, and what it holds."""

import gc
import os
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from amd_plugin import interrupts
from amd_plugin.errors import AmdPluginError

LIMIT = 300.0  # seconds after which a child counts as one that hangs
HUNG = -signal.SIGALRM
TRACEBACK, TOLD, DONE = 3, 2, 0


def forked(action: Callable[[], object], printed: Path, **environment: str) -> int:
    """Process id of a child that runs `action`, and prints to a file. It exits with what became of it."""
    gc.freeze()  # what is imported is not looked through, and so not copied, in every child
    if child := os.fork():
        return child
    code = DONE
    try:
        os.setsid()
        os.environ.update(environment)
        with printed.open("a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        action()
    except (AmdPluginError, interrupts.Interrupted) as error:
        print(f"told: {error}", flush=True)
        code = TOLD
    except BaseException:
        traceback.print_exc()
        code = TRACEBACK
    finally:
        os._exit(code)


def ended(child: int, limit: float = LIMIT) -> int:
    """Exit code of `child`, minus the number of the signal that ended it; `HUNG` for one that hung, which is killed."""
    end = time.monotonic() + limit
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return HUNG


def watched(process: int) -> tuple[float, int, int] | None:
    """(megabytes, open files) of `process` alone, and the number of it and its children; None where it has ended."""
    try:
        status = Path(f"/proc/{process}/statm").read_text().split()
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
        megabytes = int(status[1]) * resource.getpagesize() / 1e6
        return round(megabytes, 1), len(os.listdir(f"/proc/{process}/fd")), 1 + len(children)
    except (OSError, IndexError):
        return None


def around(place: tuple[object, str], before: Callable[[], None], after: Callable[[], None] = lambda: None) -> None:
    """Has `before` and `after` called around a function, in this process."""
    owner, name = place
    original = getattr(owner, name)

    def wrapped(*arguments: object, **options: object) -> object:
        before()
        try:
            return original(*arguments, **options)
        finally:
            after()

    setattr(owner, name, wrapped)


def strike(calls: int, seconds: float, signum: int = signal.SIGKILL, times: int = 1) -> None:
    """Sends this process a signal after `calls` more calls of functions, Python's and C's, in this thread, and `seconds`."""
    left = calls

    def send() -> None:
        for _ in range(times):
            os.kill(os.getpid(), signum)

    def tick(*event: object) -> None:
        nonlocal left
        left -= 1
        if left <= 0:
            sys.setprofile(None)
            threading.Timer(seconds, send).start() if seconds else send()

    sys.setprofile(tick)
