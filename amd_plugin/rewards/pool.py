"""Rewards in processes of their own: they run beside the training process, and can be stopped.

One worker scores a whole batch, so that scores equal those of the training process to the bit; N workers score N batches at a
time. Workers hold no state worth saving. One that hangs or dies is replaced, and its batches are submitted again.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import tempfile
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures import TimeoutError as TooLate
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.reduction import ForkingPickler
from typing import Any, NamedTuple

import torch
from safetensors.torch import load, save
from torch import Tensor

from amd_plugin.config import DataConfig, RewardConfig
from amd_plugin.errors import InputError, in_words
from amd_plugin.interrupts import SIGNALS, held_back
from amd_plugin.options import accepted
from amd_plugin.parent_watch import on_parent_exit
from amd_plugin.plugin_files import PREFIX
from amd_plugin.plugins import get_plugin_manager
from amd_plugin.rewards.scorer import Scorer
from amd_plugin.terminal import PlainConsole, log_to, print_to_stderr

log = logging.getLogger(__name__)

START_LIMIT = 900.0  # seconds to import everything and load a large model from a slow disk
TOLD = 10.0  # seconds of such a start after which it is said that it is waited for
AGAIN = (60.0, 3.0)  # a worker that is replaced may take that many seconds, and that many times what the first one took
DIED = "its worker process died, of too little memory or of a crash in native code"

Batch = tuple[bytes, list[str], dict[str, Any]]  # tensors packed by safetensors, media under ""; prompts; other columns


class WorkerSpec(NamedTuple):
    """Everything a worker needs to build its reward.

    Attributes:
        config: entry of the reward in the recipe.
        factory: factory of the reward; None where another process cannot import it. The worker then looks `config.name` up
            among the installed plugins.
        data: data section of the recipe, for a factory that takes the task.
        device: device of the student.
        threads: number of threads of the training process; the last bit of a sum depends on it.
        seed: seed of the run.
    """

    config: RewardConfig
    factory: Callable[..., Any] | None
    data: DataConfig | None
    device: str
    threads: int
    seed: int = 0


class WorkerCall(NamedTuple):
    """A batch that was submitted to a worker.

    Attributes:
        batch: arguments of `_score`, kept in case the worker is lost.
        worker: index of the worker.
        generation: number of times that worker had been started.
        future: scores and error message, see `_score`.
    """

    batch: Batch
    worker: int
    generation: int
    future: Future[tuple[list[float], str]]


class WorkerInfo(NamedTuple):
    """A worker's report once it has started.

    Attributes:
        problem: reason why the reward could not be built; empty if it was.
        takes: names of the batch columns that the reward takes; None if it takes any.
        unit: significant difference of scores, see `amd_plugin.rewards.protocol.Traits`.
    """

    problem: str
    takes: set[str] | None = None
    unit: float = 0.0


class PoolError(Exception):
    """A worker could not score a batch; the message is the reason."""


class Pool:
    """`size` workers, each with the same reward.

    Attributes:
        takes: names of the batch columns that the reward takes; None if it takes any.
        unit: significant difference of scores, see `amd_plugin.rewards.protocol.Traits`.

    Raises:
        InputError: if the reward cannot be built in a worker.
    """

    def __init__(self, spec: WorkerSpec, size: int):
        self._workers = [_Worker(spec) for _ in range(size)]
        self._next = 0
        problem, self.takes, self.unit = self._workers[0].info()
        for worker in self._workers[1:]:
            problem = problem or worker.info().problem
        if problem:
            self.close()
            raise InputError(problem)

    @property
    def process_ids(self) -> list[int]:
        """Process id of each worker."""
        return [pid for worker in self._workers for pid in worker.process_ids]

    def submit(self, media: Tensor, prompts: Sequence[str], columns: dict[str, Any]) -> WorkerCall:
        """Submits a batch to the next worker in turn."""
        own = {name: value for name, value in columns.items() if self.takes is None or name in self.takes}
        tensors = {name: value for name, value in own.items() if isinstance(value, Tensor)}
        # Bytes, and not tensors, which torch would pass through shared memory: containers have little of it.
        packed = save({k: v.detach().cpu().contiguous() for k, v in {"": media, **tensors}.items()})
        batch = (packed, list(prompts), {name: value for name, value in own.items() if name not in tensors})
        worker, self._next = self._next, (self._next + 1) % len(self._workers)
        return self._workers[worker].submit(batch, worker)

    def result(self, call: WorkerCall, limit: float | None) -> Tensor:
        """Scores [B] on the CPU, after waiting at most `limit` seconds.

        Raises:
            PoolError: if there are none.
        """
        values, problem = self._workers[call.worker].result(call, limit)
        if problem:
            raise PoolError(problem)
        return torch.tensor(values, dtype=torch.float32)

    def close(self) -> None:
        """Ends all workers at once."""
        for worker in self._workers:
            worker.kill()


class _Worker:
    """One process, started again whenever it is lost. What it starts, and its folder for temporary files, end with it."""

    def __init__(self, spec: WorkerSpec):
        self._spec, self._generation, self._limit = spec, 0, START_LIMIT
        self._start()

    @property
    def process_ids(self) -> list[int]:
        return list(self._executor._processes or ())

    def info(self) -> WorkerInfo:
        name = self._spec.config.name
        try:
            info = self._started()
            if self._limit == START_LIMIT:
                self._limit = min(START_LIMIT, AGAIN[0] + AGAIN[1] * (time.monotonic() - self._began))
            return info
        except TooLate:
            return WorkerInfo(f"reward '{name}': its worker process did not start within {self._limit:.0f} s")
        except BrokenProcessPool:
            message = f"reward '{name}': its worker process died while it started, after {time.monotonic() - self._began:.1f} s"
            return WorkerInfo(
                f"{message}; see its output above. A script needs `if __name__ == '__main__':` around what trains"
            )

    def _started(self) -> WorkerInfo:
        """The worker's report; says after a while that it is waited for."""
        try:
            return self._ready.result(TOLD)
        except TooLate:
            left = self._limit - (time.monotonic() - self._began)
            if left > 0:
                log.warning(
                    "reward '%s': its worker process is starting; waiting for it for another %.0f s at most",
                    self._spec.config.name, left,
                )  # fmt: skip
            return self._ready.result(max(0.0, left))

    def submit(self, batch: Batch, index: int) -> WorkerCall:
        try:
            return WorkerCall(batch, index, self._generation, self._executor.submit(_score, *batch))
        except BrokenProcessPool:  # it died while idle: no call was lost
            log.warning("reward '%s': %s; it is started again", self._spec.config.name, DIED)
            self._restart()
            return WorkerCall(batch, index, self._generation, self._executor.submit(_score, *batch))

    def result(self, call: WorkerCall, limit: float | None) -> tuple[list[float], str]:
        if call.generation != self._generation:  # lost with the process that an earlier call brought down
            call = self.submit(call.batch, call.worker)
        problem = self.info().problem
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
            return [], in_words(error)

    def kill(self) -> None:
        self._end()

    def _start(self) -> None:
        self._generation, self._began = self._generation + 1, time.monotonic()
        scratch = tempfile.TemporaryDirectory(prefix="amd-plugin-reward-", ignore_cleanup_errors=True)
        self._executor = ProcessPoolExecutor(1, get_context("spawn"), _begin, (self._spec, scratch.name))
        with held_back():  # while the worker imports, too
            self._ready = self._executor.submit(_info)
        self._end = weakref.finalize(self, _end, self._executor, list(self._executor._processes or ()), scratch)

    def _restart(self) -> None:
        self._end()
        self._start()


def importable(factory: Callable[..., Any]) -> Callable[..., Any] | None:
    """`factory`, if another process can import it; None otherwise."""
    if str(getattr(factory, "__module__", "")).startswith(PREFIX):
        return None  # of a plugin file, which the other process loads itself
    try:
        ForkingPickler.dumps(factory)
        return factory
    except Exception:  # PicklingError, AttributeError, TypeError, whatever its __reduce__ raises
        return None


def _end(executor: ProcessPoolExecutor, leaders: Sequence[int], scratch: tempfile.TemporaryDirectory[str]) -> None:
    # Executor.kill_workers came with Python 3.14; a worker that hangs would hold up the end of this process.
    for process in list((executor._processes or {}).values()):
        process.kill()
    for leader in leaders:
        with suppress(OSError):  # of a worker that had not got as far as leading a group
            os.killpg(leader, signal.SIGKILL)  # what it has started too
    executor.shutdown(wait=True, cancel_futures=True)  # takes moments, as its process is dead
    scratch.cleanup()


# What follows runs in the worker.

_scorer: Scorer | None = None
_problem = ""


def _begin(spec: WorkerSpec, scratch: str) -> None:
    global _scorer, _problem
    os.setpgid(0, 0)
    tempfile.tempdir = os.environ["TMPDIR"] = scratch  # what it leaves there goes with it
    # These signals go to the training process, which ends its step, saves, and ends this one.
    for signum in SIGNALS:
        signal.signal(signum, signal.SIG_IGN)
    print_to_stderr()
    log_to(PlainConsole(stderr=True))
    on_parent_exit(lambda: _leave(scratch))
    torch.set_num_threads(spec.threads)
    try:
        # Plugins and tasks are loaded only where they are needed: a worker that needs neither starts in half the time.
        factory, plugins, task = spec.factory, None, None
        if factory is None or "plugins" in (accepted(factory) or ()):
            plugins = get_plugin_manager()
            factory = factory or plugins.reward_factory(spec.config.name)
        if spec.data is not None and "task" in (accepted(factory) or ()):
            from amd_plugin.tasks import task_of

            task = task_of(spec.data, spec.seed)
        _scorer = Scorer(spec.config, factory, task, torch.device(spec.device), plugins)
    except InputError as error:
        _problem = str(error)
        if spec.factory is None:
            _problem += "\nA pool needs a reward that another process can import: of an installed plugin, or of a module"
    except BaseException as error:  # of somebody else's code; no signal raises one here
        _problem = f"reward '{spec.config.name}' could not be built: {in_words(error)}"


def _leave(scratch: str) -> None:
    shutil.rmtree(scratch, ignore_errors=True)
    os.killpg(0, signal.SIGKILL)


def _info() -> WorkerInfo:
    return WorkerInfo(_problem) if _scorer is None else WorkerInfo(_problem, _scorer.takes, _scorer.unit)


def _score(packed: bytes, prompts: Sequence[str], columns: dict[str, Any]) -> tuple[list[float], str]:
    """(scores, "") or ([], error message): an exception itself may not survive the way back."""
    assert _scorer is not None  # noqa: S101 (for the type checker: the pool reads `_info` first)
    try:
        tensors = load(packed)
        media = tensors.pop("")
        scores: list[float] = _scorer(media, prompts, {**tensors, **columns}).tolist()
        return scores, ""
    except BaseException as error:  # GeneratorExit and its like would bring the worker down
        return [], in_words(error)
