"""Finds the processes that do not respond once communication has failed, over connections of its own."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator

from amd_plugin.errors import in_words

# Processes give up one after the other, in the order in which they started to wait.
PROBE_SECONDS = 60.0


class RankProbe:
    """A group of connections apart from training. Build it on every process, before anything can fail.

    Args:
        accelerator: the run's processes.
        timeout: seconds after which communication in training fails; None for the default.
    """

    def __init__(self, accelerator: Accelerator, timeout: float | None):
        self._rank, self._count = accelerator.process_index, accelerator.num_processes
        self._timeout = timedelta(seconds=min(PROBE_SECONDS, timeout or PROBE_SECONDS))
        self._group = dist.new_group(backend="gloo", timeout=self._timeout) if self._count > 1 else None

    def unresponsive_ranks(self, error: BaseException) -> str:
        """A line that names the processes which do not answer; empty if all do, or if `error` is none of communication.

        Call on every process that is left.
        """
        if self._group is None or not of_communication(error):
            return ""
        others = [rank for rank in range(self._count) if rank != self._rank]
        silent = [rank for rank, answered in zip(others, self._probe(others), strict=True) if not answered]
        if not silent:
            return ""
        processes = f"process{'es' if len(silent) > 1 else ''} {', '.join(map(str, silent))}"
        return f"no answer from {processes} of 0 to {self._count - 1}: dead or hanging; look into its log\n"

    def complete(self) -> bool:
        """Whether all processes call this before the timeout."""
        try:
            if self._group is not None:
                dist.monitored_barrier(self._group, self._timeout)
        except RuntimeError:
            return False
        return True

    def _probe(self, others: list[int]) -> list[bool]:
        """Whether each of `others` receives a message from this process and sends its own."""
        exchanges: list[list[Any]] = []
        for rank in others:
            try:
                exchanges.append([dist.isend(torch.ones(1), rank, self._group), dist.irecv(torch.empty(1), rank, self._group)])
            except RuntimeError:
                exchanges.append([])
        return [_completed(exchange) for exchange in exchanges]


def of_communication(error: BaseException) -> bool:
    """Whether `error` says that processes could not communicate."""
    return isinstance(error, dist.DistError) or "gloo" in in_words(error).lower()


def _completed(exchange: list[Any]) -> bool:
    try:
        return len(exchange) == 2 and all(work.wait() for work in exchange)
    except RuntimeError:
        return False
