"""Errors a person is meant to read: where, what, got what, what to do. The CLI prints them without a traceback."""

from collections.abc import Iterable
from difflib import get_close_matches


class AmdPluginError(Exception):
    """Base of all errors this package raises on purpose. `exit_code` is what the CLI ends with."""

    exit_code = 1


class InputError(AmdPluginError):
    """A recipe, an option or a folder that cannot be used as given. Nothing was changed on disk."""

    exit_code = 2


class OptionError(InputError, ValueError):
    """A value an objective or a reward cannot take.

    Attributes:
        option: name of the keyword argument, so that a recipe can point at its line.
    """

    def __init__(self, option: str, problem: str):
        super().__init__(f"{option}: {problem}")
        self.option, self._problem = option, problem

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        # A worker process hands its errors to the one that started it.
        return type(self), (self.option, self._problem)


class MissingDependency(AmdPluginError):
    """An optional package that the request needs is not installed."""

    exit_code = 3


class RunError(AmdPluginError):
    """A run that had to stop. What it had learnt up to its last checkpoint is on disk."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Returns ``" Did you mean 'x'?"`` for the known word nearest to `word`, or an empty string."""
    near = get_close_matches(word, list(known), n=1)
    return f" Did you mean '{near[0]}'?" if near else ""
