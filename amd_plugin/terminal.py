"""The terminal, kept from control characters in what others wrote: prompts, names, messages of files and plugins."""

from __future__ import annotations

import errno
import logging
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.logging import RichHandler
from rich.text import Text

from amd_plugin.errors import InputError, printable


class PlainConsole(Console):
    """A console that prints text as it is: none can move the cursor, change colours, set the window's title or be a picture."""

    def __init__(self, **options: Any):
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Text as rich renders it, with control characters as escapes."""
        return super().render_str(plain(text), **options)

    def print(self, *objects: Any, soft_wrap: bool | None = None, **options: Any) -> None:
        """Prints as rich does. Lines of text stay whole where they go to a file: a log is searched line by line."""
        if soft_wrap is None and not self.is_terminal and all(isinstance(thing, str) for thing in objects):
            soft_wrap = True
        super().print(*objects, soft_wrap=soft_wrap, **options)

    def on_broken_pipe(self) -> None:
        """Says nothing more once nobody reads, as after ``| head``; rich itself would end the process, and a run with it."""
        self.silence()
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    def silence(self) -> None:
        """Discards all further output of this console, from C libraries too."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())


def tell(console: Console | None, text: str) -> None:
    """Prints `text` as it is, unwrapped, also on a console that would take its brackets for markup; quiet where None."""
    if console is not None:
        console.print(plain(text), markup=False, emoji=False, highlight=False, soft_wrap=True)


def draws(console: Console) -> bool:
    """Whether bars and spinners can be seen on `console`: on a terminal, unless it is one that only takes lines."""
    return console.is_terminal and not console.is_dumb_terminal


class PlainFormatter(logging.Formatter):
    """Log messages with control characters as escapes."""

    def format(self, record: logging.LogRecord) -> str:
        """The message of `record`."""
        return plain(super().format(record))


def log_to(console: PlainConsole) -> None:
    """Has warnings of this process shown on `console`, unless its program has said what becomes of them.

    Each process calls this: Python's own last resort writes messages to the terminal as they are.
    """
    handler = RichHandler(console=console, show_path=False, show_time=False)
    handler.setFormatter(PlainFormatter("%(message)s"))
    # At a lower level, deepspeed and torch would report missing accelerators in every run on a CPU.
    logging.basicConfig(level=logging.WARNING, handlers=[handler])


def plain(text: str) -> str:
    """`text` with every control character but line ends and tabs as an escape."""
    return "".join(part if part in "\n\t" else printable(part) for part in text) if not text.isprintable() else text


def print_to_stderr() -> None:
    """In a worker: what others' code prints goes to standard error; standard output is for the results of a command."""
    with suppress(OSError):  # it may be closed
        os.dup2(2, 1)


def take_any_text() -> None:
    """Has characters that standard output and error cannot encode written as escapes: not all terminals speak UTF-8."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def check_working_folder() -> None:
    """Raises InputError where the working folder was deleted: neither relative paths nor libraries work then."""
    try:
        Path.cwd()
    except OSError as error:
        raise InputError("the working folder does not exist any more; change to another one") from error
