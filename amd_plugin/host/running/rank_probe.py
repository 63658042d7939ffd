"""Which process the others waited for in vain: asked once communication has failed, over connections of its own."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator

# Seconds; processes give up one after the other, in the order in which they started to wait.
PATIENCE = 60.0


class RollCall:
    """Opens the connections; make it on every process, before there is anything to fail.

    Args:
        accelerator: knows the processes.
        timeout: seconds after which communication fails, None for the default.
    """

    def __init__(self, accelerator: Accelerator, timeout: float | None):
        self._me, self._count = accelerator.process_index, accelerator.num_processes
        self._patience = timedelta(seconds=min(PATIENCE, timeout or PATIENCE))
        self._group = dist.new_group(backend="gloo", timeout=self._patience) if self._count > 1 else None

    def absent(self, error: BaseException) -> str:
        """A line that names the processes which do not answer, or nothing; only asks where `error` is one of communication.

        Call on every process that is left.
        """
        if self._group is None or not (isinstance(error, dist.DistError) or "gloo" in str(error).lower()):
            return ""
        others = [rank for rank in range(self._count) if rank != self._me]
        silent = [rank for rank, answered in zip(others, self._ask(others), strict=True) if not answered]
        if not silent:
            return ""
        who = f"process{'es' if len(silent) > 1 else ''} {', '.join(map(str, silent))}"
        return f"no answer from {who} of 0 to {self._count - 1}: dead or hanging; look into its log\n"

    def complete(self) -> bool:
        """Whether all processes call this; waits for them no longer than for an answer."""
        try:
            if self._group is not None:
                dist.monitored_barrier(self._group, self._patience)
        except RuntimeError:
            return False
        return True

    def _ask(self, others: list[int]) -> list[bool]:
        """Whether each of `others` takes our greeting and sends its own."""
        greetings: list[list[Any]] = []
        for rank in others:
            try:
                greetings.append([dist.isend(torch.ones(1), rank, self._group), dist.irecv(torch.empty(1), rank, self._group)])
            except RuntimeError:
                greetings.append([])
        return [_done(greeting) for greeting in greetings]


def _done(greeting: list[Any]) -> bool:
    try:
        return len(greeting) == 2 and all(work.wait() for work in greeting)
    except RuntimeError:
        return False
