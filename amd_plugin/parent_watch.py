"""Worker processes that must not outlive the process that started them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from multiprocessing import parent_process


def on_parent_exit(stop: Callable[[], None]) -> None:
    """Calls `stop` in a background thread once the parent process has ended; does nothing in a process without a parent."""
    parent = parent_process()
    if parent is None:
        return

    def wait() -> None:
        parent.join()
        stop()

    threading.Thread(target=wait, daemon=True).start()
