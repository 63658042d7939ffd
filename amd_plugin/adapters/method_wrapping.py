"""Steps of a host's own method, observed or changed while it runs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def wrapped(owner: Any, name: str, wrapper: Callable[..., Any]) -> Iterator[None]:
    """Replaces the method `name` of one object: calls become ``wrapper(method, *args, **kwargs)``."""
    shadowed = vars(owner).get(name)
    object.__setattr__(owner, name, functools.partial(wrapper, getattr(owner, name)))
    try:
        yield
    finally:
        object.__delattr__(owner, name) if shadowed is None else object.__setattr__(owner, name, shadowed)
