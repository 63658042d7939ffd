"""A signal ends a run at a step boundary, with a checkpoint; a second one, after a second, ends it at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

import torch
from accelerate import Accelerator

from amd_plugin.errors import AmdPluginError
from amd_plugin.interrupts import Interrupted, Received, answered, count_anew, leave


class Preempted(AmdPluginError):
    """A signal stopped the run, after a checkpoint. Exit code 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP."""

    def __init__(self, message: str, signum: int):
        super().__init__(message)
        self.exit_code = 128 + signum

    def __reduce__(self) -> tuple[type, tuple[str, int]]:
        # Errors of a worker process are pickled for the process that started it.
        return type(self), (str(self), self.exit_code - 128)


class Preemption:
    """Context manager that turns the signals into a request that all processes agree on."""

    def __init__(self) -> None:
        self._received, self._may_leave = Received(), False
        self._before: dict[int, object] = {}

    def __enter__(self) -> Preemption:
        # Python delivers signals to the main thread only; elsewhere the host program keeps its own handlers.
        if threading.current_thread() is threading.main_thread():
            # The same record as after the end of this context, where a signal that is repeated is no second one either.
            self._received = count_anew()
            for signum in answered():
                self._before[signum] = signal.signal(signum, self._on_signal)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)  # type: ignore[arg-type]

    def requested(self, accelerator: Accelerator) -> int:
        """The signal that some process received, 0 if none did. Call on every process, at the same step."""
        if accelerator.num_processes == 1:
            return self._received.signum
        flags = accelerator.gather(torch.tensor([self._received.signum], device=accelerator.device))
        return int(flags.max())

    @contextmanager
    def leaving(self) -> Iterator[None]:
        """Around work that changes no state and can be done again: a signal, also an earlier one, raises Interrupted there.

        It does so at the end in any case: libraries turn an exception that a signal raises in them into one of their own, or
        into none, and then the work is not what it would have been.
        """
        self._may_leave = True
        try:
            self.stop_point()
            yield
            self.stop_point()
        except Exception:
            self.stop_point()
            raise
        finally:
            self._may_leave = False

    def stop_point(self) -> None:
        """Raises Interrupted if a signal has come; for work that changes state, between two of its parts."""
        if self._received.signum:
            raise Interrupted(self._received.signum)

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        first = not self._received.signum
        if self._received.add(signum) and not first:
            leave(signum)
        if first and self._may_leave:
            raise Interrupted(signum)
