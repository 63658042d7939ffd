"""Errors a person is meant to read: where, what, got what, what to do. The command line prints them without a traceback."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches


class AmdPluginError(Exception):
    """Base of all errors this package raises on purpose. `exit_code` is the exit code of the command line."""

    exit_code = 1


class InputError(AmdPluginError):
    """A recipe, an option or a folder that cannot be used as given. Nothing was changed on disk."""

    exit_code = 2


class OptionError(InputError, ValueError):
    """A value that an objective or a reward does not accept.

    Attributes:
        option: name of the keyword argument, by which a recipe finds its line.
    """

    def __init__(self, option: str, problem: str):
        super().__init__(f"{option}: {problem}")
        self.option, self._problem = option, problem

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        # A worker process sends its errors, pickled, to the process that started it.
        return type(self), (self.option, self._problem)


class MissingDependency(AmdPluginError):
    """An optional package that the request needs is not installed."""

    exit_code = 3


class RunError(AmdPluginError):
    """A run that had to stop. Its last checkpoint is on disk."""


def in_words(error: BaseException) -> str:
    """``Type: message`` of any exception, also of one that cannot be printed because its own code fails."""
    kind = type(error).__name__
    try:
        return f"{kind}: {error}"
    except KeyboardInterrupt:
        raise
    except BaseException as failure:  # of somebody else's __str__
        return f"{kind}, which cannot be printed ({type(failure).__name__})"


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """`error` and what it comes from, each once: the chain of others' exceptions may be a ring (``raise error from error``)."""
    seen = set[int]()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__


def did_you_mean(word: str, candidates: Iterable[str]) -> str:
    """``" Did you mean 'x'?"`` for the candidate nearest to `word`, or an empty string."""
    near = get_close_matches(word, list(candidates), n=3)
    near.sort(key=lambda candidate: sorted(candidate) != sorted(word))  # the same letters in another order first
    return f" Did you mean '{near[0]}'?" if near else ""


@contextmanager
def unreadable_is_input_error(message: str, hint: str = "", longest: int = 300) -> Iterator[None]:
    """Turns whatever a library raises while it reads a file into one line: ``message: TypeName: cause.hint``.

    Args:
        message: what could not be read, and where.
        hint: what to do about it, with a leading space.
        longest: largest length of the cause, in characters.

    Raises:
        InputError: in place of every other exception.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # OSError, ValueError, RuntimeError, hub, pickle and safetensors errors alike
        cause = " ".join(in_words(error).split())[: longest + len(type(error).__name__) + 2]
        raise InputError(f"{message}: {cause.rstrip('.')}.{hint}") from error


def printable(text: str) -> str:
    """`text` with every control character as an escape, e.g. of a prompt: a terminal obeys some of them."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)
