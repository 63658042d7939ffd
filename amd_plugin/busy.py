"""Progress messages while a command prints nothing else."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from rich.console import Console
from rich.text import Text

from amd_plugin.terminal import draws, plain, tell

EVERY = 10.0  # seconds between two lines


@contextmanager
def busy(console: Console | None, what: str, *, at_once: bool = True) -> Iterator[None]:
    """Says `what` is going on: a spinner on a terminal; elsewhere a line, and one with the time every ten seconds.

    Args:
        console: console to print on; quiet where None.
        what: what is being done, e.g. ``training the teacher``.
        at_once: whether the first line is printed before ten seconds are over; False for what is short more often than not.
    """
    if console is None:
        yield
        return
    if draws(console):
        with console.status(Text(plain(what)), spinner="line"):
            yield
        return
    done, start = threading.Event(), time.monotonic()

    def say() -> None:
        with suppress(OSError):  # where it is printed to a file on a disk that is full
            tell(console, what)

    def say_again() -> None:
        said = at_once
        while not done.wait(EVERY):
            if not said:
                say()
            said = True
            with suppress(OSError):
                tell(console, f"  ... {time.monotonic() - start:.0f} s")

    if at_once:
        say()
    teller = threading.Thread(target=say_again, daemon=True)
    teller.start()
    try:
        yield
    finally:
        done.set()
        teller.join()


def duration(seconds: float) -> str:
    """``45 s``, ``2 min 40 s``, ``12 min`` or ``3.5 h``: a time in words, as exactly as anybody needs it."""
    if seconds < 99.5:
        return f"{seconds:.0f} s" if seconds >= 9.5 else f"{seconds:.2g} s"
    if seconds < 595:  # in steps of ten seconds, so that a line every ten seconds differs from the one before
        minutes, rest = divmod(round(seconds / 10) * 10, 60)
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    return f"{seconds / 60:.0f} min" if seconds < 5970 else f"{seconds / 3600:.1f} h"
