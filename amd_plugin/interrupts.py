"""Ctrl-C, SIGTERM and a terminal that is closed end every command in one line, with exit code 130, 143 or 129.

They leave nothing half written: all raise an exception where the program stands, so that whatever was begun is cleaned up.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated", signal.SIGHUP: "the terminal was closed"}
SIGNALS = tuple(WORDS)
FIRST = 1.0  # seconds that belong to the first signal: launchers repeat theirs, and terminals send it to a whole group


class Interrupted(KeyboardInterrupt):
    """A signal asked this process to end. It is no `Exception`, so that nothing takes it for a failure of its own."""


class Received:
    """The signals that a process got.

    Attributes:
        signum: number of the first signal; 0 before there is one.
    """

    def __init__(self) -> None:
        self.signum, self._at = 0, 0.0

    def add(self, signum: int) -> bool:
        """Whether the signal is news: the first one, or one that comes after the first one's second."""
        now = time.monotonic()
        if self.signum and now - self._at < FIRST:
            return False
        self._at = self._at if self.signum else now
        self.signum = self.signum or signum
        return True


received = Received()


def answered() -> tuple[signal.Signals, ...]:
    """The signals that this process answers: not the end of a terminal under ``nohup``."""
    return tuple(s for s in SIGNALS if s is not signal.SIGHUP or signal.getsignal(s) is not signal.SIG_IGN)


def answer() -> None:
    """From now on the signals raise `Interrupted` in the main thread; elsewhere the host program keeps its own handlers."""
    if threading.current_thread() is threading.main_thread():
        count_anew()
        for signum in answered():
            signal.signal(signum, leave)


def count_anew() -> Received:
    """The record of the signals that come from now on, for everything in this process that answers one."""
    global received
    received = Received()
    return received


def ignore() -> None:
    """Ignores all further signals, so that the last message is not interrupted: launchers repeat theirs."""
    if threading.current_thread() is threading.main_thread():
        for signum in SIGNALS:
            signal.signal(signum, signal.SIG_IGN)


@contextmanager
def held_back(signals: Iterable[signal.Signals] = SIGNALS) -> Iterator[None]:
    """Signals that come in the block are answered after it; processes that are started in it never get them.

    A terminal sends its signals to all processes of a group. In one that still imports, or waits, they would be a traceback.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave(signum: int, frame: FrameType | None = None) -> None:
    """Handler of a signal; raises Interrupted unless it only repeats the first one."""
    if received.add(signum):
        raise Interrupted(signum)
