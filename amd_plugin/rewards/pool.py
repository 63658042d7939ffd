"""Rewards in processes of their own: they run while the training process does something else, and can be stopped.

A batch is scored by one worker, whole, so that scores are those of the training process to the bit; N workers take N batches at
a time. Workers hold no state worth saving: one that hangs or dies is replaced, and the batches that waited for it asked again.
"""

from __future__ import annotations

import logging
import os
import signal
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures import TimeoutError as TooLate
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from multiprocessing.reduction import ForkingPickler
from typing import Any, NamedTuple

import torch
from safetensors.torch import load, save
from torch import Tensor

from amd_plugin.config import DataConfig, RewardConfig
from amd_plugin.errors import InputError
from amd_plugin.options import accepted
from amd_plugin.parent_watch import on_parent_exit
from amd_plugin.rewards.scorer import Scorer

log = logging.getLogger(__name__)

START_LIMIT = 900.0  # seconds to import everything and load a large model from a slow disk
DIED = "its worker process died, of too little memory or of a crash in native code"


class Spec(NamedTuple):
    """What a worker needs to build its reward.

    Attributes:
        factory: None where it cannot be pickled by name; the worker then looks `config.name` up among installed plugins.
        data: the recipe's task, for a factory that asks for it.
        threads: as many as the training process has, since sums depend on it in their last bit.
    """

    config: RewardConfig
    factory: Callable[..., Any] | None
    data: DataConfig | None
    device: str
    threads: int


class Call(NamedTuple):
    """A batch that was handed over.

    Attributes:
        batch: what `_score` is called with, kept in case the worker is lost.
        worker, life: who has it, and in which of its lives.
    """

    batch: tuple[bytes, Sequence[str], dict[str, Any]]
    worker: int
    life: int
    future: Future[tuple[list[float], str]]


class PoolError(Exception):
    """A call that a worker could not answer; the message says why."""


class Pool:
    """`size` workers, each with the same reward.

    Attributes:
        takes: columns the reward asks for by name; None if it takes any.
        unit: the reward's, see `Traits`.

    Raises:
        InputError: if the reward cannot be built there.
    """

    def __init__(self, spec: Spec, size: int):
        self._workers = [_Worker(spec) for _ in range(size)]
        self._next = 0
        problem, self.takes, self.unit = self._workers[0].about()
        for worker in self._workers[1:]:
            problem = problem or worker.about()[0]
        if problem:
            self.close()
            raise InputError(problem)

    def submit(self, media: Tensor, prompts: Sequence[str], columns: dict[str, Any]) -> Call:
        """Hands a batch to the next worker in turn."""
        known = {name: value for name, value in columns.items() if self.takes is None or name in self.takes}
        tensors = {name: value for name, value in known.items() if isinstance(value, Tensor)}
        # Bytes, and not tensors, which torch would pass through shared memory: containers have little of it.
        packed = save({k: v.detach().cpu().contiguous() for k, v in {"": media, **tensors}.items()})
        batch = (packed, list(prompts), {name: value for name, value in known.items() if name not in tensors})
        worker, self._next = self._next, (self._next + 1) % len(self._workers)
        return self._workers[worker].submit(batch, worker)

    def result(self, call: Call, limit: float | None) -> Tensor:
        """Scores [B] on the CPU, waiting at most `limit` seconds; raises PoolError where there are none."""
        values, problem = self._workers[call.worker].result(call, limit)
        if problem:
            raise PoolError(problem)
        return torch.tensor(values, dtype=torch.float32)

    def close(self) -> None:
        """Ends all workers at once."""
        for worker in self._workers:
            worker.kill()


class _Worker:
    """One process, in as many lives as it takes."""

    def __init__(self, spec: Spec):
        self._spec, self._life = spec, 0
        self._start()

    def about(self) -> tuple[str, set[str] | None, float]:
        """(why the reward could not be built, columns it takes, its unit)."""
        try:
            return self._ready.result(START_LIMIT)
        except (BrokenProcessPool, TooLate) as error:
            what = f"reward '{self._spec.config.name}': its worker process did not start ({type(error).__name__})"
            return f"{what}; see its output above. A script needs `if __name__ == '__main__':` around what trains", None, 0.0

    def submit(self, batch: tuple[bytes, Sequence[str], dict[str, Any]], index: int) -> Call:
        try:
            return Call(batch, index, self._life, self._executor.submit(_score, *batch))
        except BrokenProcessPool:  # it died while it had nothing to do: no call was lost
            log.warning("reward '%s': %s; it is started again", self._spec.config.name, DIED)
            self._restart()
            return Call(batch, index, self._life, self._executor.submit(_score, *batch))

    def result(self, call: Call, limit: float | None) -> tuple[list[float], str]:
        if call.life != self._life:  # lost with the worker that an earlier call brought down
            call = self.submit(call.batch, call.worker)
        problem = self.about()[0]
        if problem:
            self._restart()
            return [], problem
        try:
            return call.future.result(limit)
        except TooLate:
            self._restart()
            return [], f"TimeoutError: no answer within {limit:g} s"
        except BrokenProcessPool:
            self._restart()
            return [], DIED
        except Exception as error:  # a column that cannot be pickled
            return [], f"{type(error).__name__}: {error}"

    def kill(self) -> None:
        self._end()

    def _start(self) -> None:
        self._life += 1
        self._executor = ProcessPoolExecutor(1, get_context("spawn"), _begin, (self._spec,))
        self._ready = self._executor.submit(_about)
        self._end = weakref.finalize(self, _end, self._executor)

    def _restart(self) -> None:
        self._end()
        self._start()


def by_name(factory: Callable[..., Any]) -> Callable[..., Any] | None:
    """`factory`, if another process can import it; None otherwise."""
    try:
        ForkingPickler.dumps(factory)
        return factory
    except Exception:  # PicklingError, AttributeError, TypeError, whatever its __reduce__ raises
        return None


def _end(executor: ProcessPoolExecutor) -> None:
    # Executor.kill_workers came with Python 3.14; a worker that hangs would hold up the end of this process.
    for process in list((executor._processes or {}).values()):
        process.kill()
    executor.shutdown(wait=False, cancel_futures=True)


# What follows runs in the worker.

_scorer: Scorer | None = None
_problem = ""


def _begin(spec: Spec) -> None:
    global _scorer, _problem
    # Both signals go to the training process, which ends its step, saves, and ends this one.
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)
    on_parent_exit(lambda: os._exit(0))
    torch.set_num_threads(spec.threads)
    try:
        # Imported where they are needed: a worker that needs neither starts in half the time.
        factory, task = spec.factory, None
        if factory is None:
            from amd_plugin.plugins import get_plugin_manager

            factory = get_plugin_manager().reward_factory(spec.config.name)
        if spec.data is not None and "task" in (accepted(factory) or ()):
            from amd_plugin.tasks import TASKS

            task = TASKS[spec.data.task](**spec.data.options)
        _scorer = Scorer(spec.config, factory, task, torch.device(spec.device))
    except InputError as error:
        _problem = str(error)
        if spec.factory is None:
            _problem += "\nA pool needs a reward that another process can import: of an installed plugin, or of a module"
    except (Exception, SystemExit) as error:
        _problem = f"reward '{spec.config.name}' could not be built: {type(error).__name__}: {error}"


def _about() -> tuple[str, set[str] | None, float]:
    return (_problem, None, 0.0) if _scorer is None else (_problem, _scorer.takes, _scorer.unit)


def _score(packed: bytes, prompts: Sequence[str], columns: dict[str, Any]) -> tuple[list[float], str]:
    """(scores, "") or ([], what went wrong): an exception itself may not survive the way back."""
    assert _scorer is not None  # noqa: S101 (for the type checker: `about` was asked first)
    try:
        tensors = load(packed)
        media = tensors.pop("")
        scores: list[float] = _scorer(media, prompts, {**tensors, **columns}).tolist()
        return scores, ""
    except (Exception, SystemExit) as error:
        return [], f"{type(error).__name__}: {error}"
