"""Plugins in plain Python files, which a user names on the command line or in `AMD_PLUGIN_LOAD`. A recipe cannot name any."""

from __future__ import annotations

import importlib.util
import os
import shlex
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from amd_plugin.errors import InputError, in_words

VARIABLE = "AMD_PLUGIN_LOAD"
PREFIX = "amd_plugin_file_"  # of their modules' names, which no other process can import
_typed: list[Path] = []


def add(files: Iterable[Path]) -> None:
    """Adds `files` to `AMD_PLUGIN_LOAD` of this process and of those that it starts: workers need them too.

    Raises:
        InputError: where one of them is no Python file, or has a comma in its path.
    """
    for file in files:
        if not file.is_file() or file.suffix != ".py":
            problem = "is no Python file (name.py)" if file.exists() else "there is no such file"
            raise InputError(f"--plugin {file}: {problem}")
        if "," in str(file.absolute()):
            message = f"a comma separates the files of {VARIABLE}, and is in {file.absolute()}"
            raise InputError(f"--plugin {file}: {message}. Rename it, or put the file into another folder")
        before = os.environ.get(VARIABLE)
        if str(file.absolute()) not in (before or "").split(","):
            os.environ[VARIABLE] = f"{before},{file.absolute()}" if before else str(file.absolute())
            _typed.append(file)


def command(*words: str | Path) -> str:
    """A command that a person is to type next: `words` after ``amd-plugin``, with the options ``--plugin FILE`` of this one."""
    loaded = os.environ.get(VARIABLE, "").split(",")
    typed = dict.fromkeys(str(file) for file in _typed if str(file.absolute()) in loaded)
    options = [word for file in typed for word in ("--plugin", file)]
    return shlex.join(["amd-plugin", *map(str, words), *options])


def is_file(entry: str) -> bool:
    """Whether an entry of `AMD_PLUGIN_LOAD` is a file, and not the name of an entry point."""
    return entry.endswith(".py")


def read(file: Path) -> ModuleType:
    """The module in `file`, executed.

    Raises:
        InputError: where it cannot be read or raises, with the line.
    """
    name = PREFIX + file.stem
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None or not file.is_file():
        raise InputError(f"plugin file {file}: there is no such Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        del sys.modules[name]
        own = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
        line = error.lineno if isinstance(error, SyntaxError) else own[-1] if own else None
        place = f"{file}:{line}" if line else str(file)
        message = f"SyntaxError: {error.msg}" if isinstance(error, SyntaxError) else in_words(error)
        raise InputError(f"plugin file {place}: {message}") from error
    return module
