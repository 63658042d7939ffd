"""Limits of the operating system, as a full disk or a quota has them."""

import resource
from contextlib import contextmanager


@contextmanager
def no_file_above(size):
    """Files cannot grow beyond `size` bytes in this process, as with ``ulimit -f``: what is written raises OSError."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
