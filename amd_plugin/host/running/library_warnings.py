"""What libraries log during a run, each place in their code once: batches repeat, and so would their warnings."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

LIBRARIES = ("accelerate", "datasets", "diffusers", "huggingface_hub", "peft", "transformers")


class _FirstOfEachPlace(logging.Filter):
    """Lets the first record through of every line of a library that logs. Texts differ from batch to batch, so they are no key.

    Handlers of the root logger get everybody's records, this package's too, each of which counts.
    """

    def __init__(self) -> None:
        super().__init__()
        self._seen: set[tuple[str, int]] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether `record` is shown."""
        place, library = (record.pathname, record.lineno), record.name.partition(".")[0]
        shown = record.levelno < logging.WARNING or library not in LIBRARIES or place not in self._seen
        self._seen.add(place)
        return shown


@contextmanager
def once_per_run() -> Iterator[None]:
    """Within the context, a warning of a library is shown once, however often its line of code logs."""
    with ExitStack() as restore:
        # A logger's own filters see nothing of what its children log; the handlers see it all.
        for handler in {id(h): h for name in ("", *LIBRARIES) for h in logging.getLogger(name).handlers}.values():
            once = _FirstOfEachPlace()  # each its own: a record goes through several handlers
            handler.addFilter(once)
            restore.callback(handler.removeFilter, once)
        yield
