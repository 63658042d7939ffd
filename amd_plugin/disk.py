"""A disk that does not take a file: full, over a quota or a limit, read-only, or of somebody else.

`amd_plugin.atomic` raises `NotWritten` for it. What can be made again is done without; all else stops with one message: the
file, the reason, what is safe, and what to do.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from amd_plugin import errors

log = logging.getLogger(__name__)

REMEDIES = {
    errno.ENOSPC: "Make room",
    errno.EDQUOT: "Make room within your quota, or have it raised",
    errno.EFBIG: "Raise the limit on the size of files (ulimit -f)",
    errno.EROFS: "Have the disk mounted for writing",
    errno.EACCES: "Get the right to write there",
    errno.EPERM: "Get the right to write there",
    errno.ENOENT: "Put it back where it was",
    errno.EIO: "Have the disk looked after",
    errno.ESTALE: "Have the disk mounted again",
}
ONLY_OF_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
# How libraries in Rust, such as safetensors and tokenizers, write the number into their messages.
_RUST = re.compile(r"\(os error (\d+)\)")


def regular(path: Path) -> Path:
    """`path`, which is a file or a folder; raises OSError where it is a pipe or a device, whose reading may never end."""
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise OSError(errno.EINVAL, "it is no file but a pipe or a device", str(path))
    return path


def at_home(path: str) -> Path:
    """`path`, whose ``~`` is a user's home folder where that is known; pathlib raises RuntimeError where it is not."""
    return Path(os.path.expanduser(path))


class NotWritten(OSError):
    """A file or folder that could not be written; `filename` is its name, and not that of a draft."""


def refusal(error: BaseException | None) -> OSError | None:
    """The refusal of a disk that `error` is or comes from; None where it has another reason."""
    for cause in errors.causes(error):
        if isinstance(cause, NotWritten) or (isinstance(cause, OSError) and cause.errno in ONLY_OF_WRITING):
            return cause
        code = number(cause)
        if code in ONLY_OF_WRITING:
            return OSError(code, os.strerror(code))
    return None


def number(error: BaseException) -> int:
    """The operating system's number of an error; 0 where it has none."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    of_rust = type(error).__module__.startswith(("safetensors", "builtins"))
    found = _RUST.search(errors.in_words(error)) if of_rust else None
    return int(found[1]) if found else 0


def in_words(error: OSError) -> str:
    """``FILE: cannot be written: REASON``."""
    return f"{error.filename or 'the output'}: cannot be written: {error.strerror or error}"


def thread_failed(failure: threading.ExceptHookArgs) -> None:
    """Logs a failed write of a library's thread in one line, for `threading.excepthook`; Python's own hook gets all else.

    TensorBoard writes in such a thread, and its next call raises the same where the run answers it.
    """
    if (refused := refusal(failure.exc_value)) is None:
        threading.__excepthook__(failure)
    else:
        log.warning("a thread of a library ended: %s", in_words(refused))


def remedy(error: OSError) -> str:
    """What to do about it, as the beginning of a sentence."""
    return REMEDIES.get(error.errno or 0, "Mend that")


def output_refused(error: OSError) -> errors.InputError:
    """What a command says whose --output cannot be written."""
    return errors.InputError(f"--output {in_words(error)}. {remedy(error)}, or choose another folder")


@contextmanager
def dispensable(path: Path, then: str, shown: Path | None = None) -> Iterator[None]:
    """Around the writing of `path`, which can be made again: a disk that does not take it gets a warning.

    An earlier file of that name is removed then, since it is not what it would be taken for.

    Args:
        path: the file, or folder, that is written.
        then: what follows for the user, as the end of a sentence.
        shown: its name for the user, where it is to be another one in the end.
    """
    try:
        yield
    except Exception as error:  # of libraries too, which have errors of their own for it
        refused = refusal(error)
        if refused is None:
            raise
        with suppress(OSError):
            path.unlink(missing_ok=True)
        log.warning("%s: cannot be written: %s; %s", shown or path, refused.strerror, then)
