"""JSON that this package once wrote, read back as input: it may be cut, damaged, or of somebody else.

What a file must hold is said as a type, which pydantic checks; whatever is wrong becomes one kind of error.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Hashable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

from pydantic import Field, TypeAdapter, ValidationError

from amd_plugin.disk import regular
from amd_plugin.errors import InputError

log = logging.getLogger(__name__)

Value = TypeVar("Value")

LARGEST = 2**32  # bytes: more than a log of a million steps has, and less than would fill the memory of a machine that trains

MOST_STEPS = 2**53  # beyond that, floats leave whole numbers out
Step = Annotated[int, Field(ge=0, lt=MOST_STEPS)]  # a number of student updates


def read(path: Path, kind: type[Value], advice: str, where: str = "") -> Value:
    """The content of the JSON file `path`, checked.

    Args:
        path: the file.
        kind: type of its content: a pydantic model, a dataclass, or a type of plain values.
        advice: what to do about a file that cannot be read, as a sentence without a full stop.
        where: what the file belongs to, for the message; its path where empty.

    Raises:
        InputError: naming the file, the key, what was expected there and what was found.
    """
    try:
        return parse(_content(path), kind)
    except OSError as error:
        problem = f"cannot be read: {error.strerror or error}"
    except ValueError as error:
        problem = f"cannot be read: {error}"
    raise InputError(f"{where or path}: {path.name if where else ''}{' ' if where else ''}{problem}. {advice}")


def parse(text: bytes, kind: type[Value]) -> Value:
    """The JSON value `text`, checked.

    Raises:
        ValueError: in words, naming the key.
    """
    try:
        value: Value = _adapter(cast("Hashable", kind)).validate_json(text, strict=True)
        return value
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        got = "" if first["type"] == "json_invalid" else f", got {_short(first['input'])}"
        raise ValueError(f"{key}{': ' if key else ''}{first['msg']}{got}") from error


def read_lines(path: Path, kind: type[Value], *, strict: bool = False) -> list[tuple[bytes, Value]]:
    """(line, its content) for each line of a file of JSON lines; one that is cut or something else is left out with a warning.

    Raises:
        InputError: where the file cannot be read; with `strict`, also for the first line that is something else.
    """
    try:
        return list(_checked(path, _content(path), kind, strict))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error


def _content(path: Path) -> bytes:
    """The bytes of a file; raises OSError where it is none, or larger than any that this package writes."""
    if (size := regular(path).stat().st_size) > LARGEST:
        raise OSError(errno.EINVAL, f"it has {size:,} bytes, which none that is written here has", str(path))
    return path.read_bytes()


def _checked(path: Path, content: bytes, kind: type[Value], strict: bool) -> Iterator[tuple[bytes, Value]]:
    for number, line in enumerate(content.split(b"\n"), 1):
        try:
            if line:
                yield line, parse(line, kind)
        except ValueError as error:
            if strict:
                raise InputError(f"{path}:{number}: {error}") from error
            log.warning("%s:%d: is left out: %s", path, number, error)


@lru_cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
