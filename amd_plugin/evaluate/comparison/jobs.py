"""The runs of a comparison, in worker processes: one per arm and seed, and one teacher per seed."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from ctypes import c_byte
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from types import FrameType
from typing import TypeVar

import torch
from rich.console import Console

from amd_plugin.busy import EVERY, duration
from amd_plugin.disk import dispensable, refusal, remedy
from amd_plugin.disk import in_words as disk_in_words
from amd_plugin.errors import AmdPluginError, InputError, RunError, in_words
from amd_plugin.evaluate.comparison.arms import Arm, Overrides
from amd_plugin.evaluate.comparison.result import run_folder
from amd_plugin.host import run
from amd_plugin.host.evaluation.held_out import mean_scores
from amd_plugin.host.running import run_cost
from amd_plugin.host.running.accelerator import make_accelerator
from amd_plugin.host.running.preemption import Preempted
from amd_plugin.host.running.recipe_changes import finished
from amd_plugin.host.running.run_folder import write_json
from amd_plugin.host.training.trainer import Trainer
from amd_plugin.interrupts import Interrupted, held_back
from amd_plugin.models.backbone import load_backbone
from amd_plugin.models.teacher_samples import teacher_samples
from amd_plugin.parent_watch import on_parent_exit
from amd_plugin.plugins import PluginManager, get_plugin_manager
from amd_plugin.recipe.loading import Recipe, load
from amd_plugin.rewards.reward_set import RewardSet
from amd_plugin.terminal import PlainConsole, log_to, print_to_stderr, tell
from amd_plugin.threads import one_thread

Result = TypeVar("Result")
Metrics = dict[str, float]
PROBED, PROBE_SECONDS = 3, 2.0  # of an estimate: updates at most, and seconds after which none begins

# Seconds for a run to write its checkpoint before its worker ends, and for a signal to reach the process that started it.
GRACE, SAME_SIGNAL = 30, 5
TERMINATED = 128 + signal.SIGTERM  # exit code


@dataclass(frozen=True)
class Job:
    """One call of a worker.

    Attributes:
        recipe: name or file of the recipe.
        overrides: overrides of the recipe for all arms, ``a.b=value`` each.
        output: folder of the comparison.
        seed: seed of the run and of its teacher.
        arm: arm to run; None for the teacher alone.
    """

    recipe: str
    overrides: Overrides
    output: Path
    seed: int
    arm: Arm | None = None

    @property
    def name(self) -> str:
        """Name of the arm, or ``teacher``."""
        return "teacher" if self.arm is None else self.arm.name


Results = dict[tuple[str, int], Metrics]


class Crashed(RunError):
    """A job that ended with an error which nobody raised on purpose; its traceback comes from the worker as the cause."""


@contextmanager
def worker_pool(workers: int, threads: int) -> Iterator[ProcessPoolExecutor]:
    """A pool of `workers` processes with `threads` threads each, which all start at once and end with the block.

    Left alone, a pool starts a process when a job finds none idle. A single teacher would then be trained before the second
    worker began its imports, and these take seconds.

    Where the block ends with Ctrl-C or another signal, each worker saves the run it is at, if any, and begins no other; a
    second signal meanwhile ends them at once. A terminal sends its signals to a whole group, and a scheduler to this process
    alone: workers hear of a signal from this process, once.

    Raises:
        RunError: where a worker was ended from outside, whatever the block was waiting for.
    """
    try:
        with _workers(workers, threads) as pool:
            yield pool
    except BrokenProcessPool as error:  # killed, by the kernel for instance
        message = "a worker process was ended from outside, perhaps for lack of memory"
        raise RunError(f"{message}. Finished runs are kept; go on with the same command and fewer --workers") from error


@contextmanager
def _workers(workers: int, threads: int) -> Iterator[ProcessPoolExecutor]:
    context = get_context("spawn")
    stopping = context.RawValue("b", False)  # without a lock, which a process that is terminated would keep
    pool = ProcessPoolExecutor(workers, context, _start_worker, (threads, context.Value("i", 0), stopping))
    with held_back():
        for _ in range(workers):
            pool.submit(_ready)
    with pool:
        try:
            yield pool
        except KeyboardInterrupt:
            stopping.value, processes = True, list((pool._processes or {}).values())
            try:
                for process in processes:
                    process.terminate()
                pool.shutdown(wait=True, cancel_futures=True)
            except KeyboardInterrupt:
                for process in processes:
                    process.kill()
                raise
            raise


def cores() -> int:
    """Number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, by the names that CUDA_VISIBLE_DEVICES gives them; asks the driver alone."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return [str(index) for index in range(count)] if named is None else [name.strip() for name in named.split(",")][:count]


def run_jobs(
    pool: ProcessPoolExecutor, function: Callable[[Job], Metrics], jobs: Sequence[Job], console: Console | None
) -> Results:
    """(arm, seed) -> metrics; every job finishes before those that failed are reported.

    Raises:
        RunError: with one line per failed job.
        BrokenProcessPool: at once, where a worker was ended from outside.
    """
    results, failed, crash = Results(), list[str](), None
    futures = {pool.submit(in_worker, function, job): job for job in jobs}
    for done, future in enumerate(_finished(futures, console), 1):
        job = futures[future]
        try:
            metrics = results[job.name, job.seed] = future.result()
            note = "  ".join(f"{name} {value:.3f}" for name, value in list(metrics.items())[:3])
        except AmdPluginError as error:
            failed.append(f"{job.name}, seed {job.seed}: {error}")
            note = f"failed: {error}"
            crash = crash or (error.__cause__ if isinstance(error, Crashed) else None)
        tell(console, f"[{done}/{len(jobs)}] {job.name}, seed {job.seed}: {note}")
    if failed:
        raise RunError("\n".join([*failed, "The other runs are kept; the same command runs only what is missing."])) from crash
    return results


def _finished(futures: Collection[Future[Metrics]], console: Console | None) -> Iterator[Future[Metrics]]:
    """The futures as they end; says that the others go on where none has ended for ten seconds."""
    pending, start = {*futures}, time.monotonic()
    while pending:
        ended, pending = wait(pending, EVERY, FIRST_COMPLETED)
        yield from (future for future in futures if future in ended)
        if not ended:
            spent = duration(time.monotonic() - start)
            tell(console, f"  ... {spent}, {len(futures) - len(pending)} of {len(futures)} finished")


def processor_seconds(run: Path) -> float | None:
    """Processor seconds of the run in `run`, its evaluations included; None where they are unknown."""
    return _cost(run).get("processor_seconds")


def _cost(run: Path) -> dict[str, float]:
    """What cost.json of the run in `run` says; empty where it says nothing that can be read."""
    try:
        return run_cost.values_in(run)
    except InputError:  # nothing depends on it
        return {}


def seconds_per_update(job: Job) -> float:
    """In a worker: how long an update of one arm takes, with a teacher that has hardly been trained.

    Warnings are left out: those about rewards and samples of such a teacher would mislead, and the runs repeat all others.

    Raises:
        ValueError: for a job without an arm.
    """
    if job.arm is None:
        raise ValueError("a job without an arm updates nothing")
    own = (f"train.seed={job.seed}", "train.trackers=[]", "model.teacher.steps=1")
    recipe = load(job.recipe, _plugins(), (*job.overrides, *job.arm.overrides, *own), job.arm.objective)
    with one_thread(), _without_warnings():
        trainer = Trainer(recipe, _plugins(), make_accelerator(recipe, job.output))
        try:
            trainer.cycle()  # the first one allocates
            start, updates, spent = time.monotonic(), 0, 0.0
            while updates < PROBED and spent < PROBE_SECONDS:
                trainer.cycle()
                updates, spent = updates + 1, time.monotonic() - start
            return spent / updates
        finally:
            if trainer.rewards is not None:
                trainer.rewards.close()


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Inside, this process logs nothing below an error."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def train_arm(job: Job) -> Metrics:
    """In a worker: trains one arm on one seed, or returns the result that is there already."""
    if job.arm is None:
        raise ValueError("a job without an arm trains nothing")
    own = (f"train.seed={job.seed}", "train.trackers=[]")
    recipe = load(job.recipe, _plugins(), (*job.overrides, *job.arm.overrides, *own), job.arm.objective)
    folder = run_folder(job.output, job.arm.name, job.seed)
    evaluation = finished(folder, recipe)
    if evaluation is None:
        start, spent = time.process_time(), processor_seconds(folder) or 0.0
        try:
            evaluation = run.train(recipe, _plugins(), folder, resume="auto")
        finally:
            if folder.is_dir():
                cost = folder / run_cost.FILE  # the run has written its own part
                with dispensable(cost, "later estimates do not know what this run cost"):
                    write_json(cost, {**_cost(folder), "processor_seconds": spent + time.process_time() - start})
    return evaluation


def measure_teacher(job: Job) -> Metrics:
    """In a worker: trains the seed's teacher, or takes it from the cache, and measures its own many-step samples."""
    plugins = _plugins()
    recipe = load(job.recipe, plugins, (*job.overrides, f"train.seed={job.seed}"))
    with one_thread(recipe.config.model.network is not None):
        return _measured_teacher(recipe, plugins, job.output)


def _measured_teacher(recipe: Recipe, plugins: PluginManager, output: Path) -> Metrics:
    config, task, seed = recipe.config, recipe.task, recipe.config.train.seed
    if task.num_classes:
        RewardSet([reward.here for reward in config.rewards], plugins, task)  # trains their networks, once
    backbone = load_backbone(config.model, task, seed, plugins.families())
    device, scale = torch.device("cpu"), 1.0
    if config.model.path is not None:  # a pipeline is made for a GPU, and for guidance
        device, scale = make_accelerator(recipe, output).device, recipe.objective.guidance_scale
        backbone.network.to(device)
        backbone.move_autoencoders(device)
    count, batch = config.evaluate.samples, config.evaluate.batch_size
    samples, labels = teacher_samples(backbone, config.model, task, seed, count, scale, batch)
    media = backbone.decode_in_parts(samples.to(device), batch)
    judges = RewardSet([reward.here for reward in config.evaluate.rewards], plugins, task, device=device)
    return task.evaluate(media, labels, samples) | mean_scores(judges, task, media, labels, batch)


@cache
def _plugins() -> PluginManager:
    """The plugins of this worker process; those registered by hand in the process that started it are unknown here."""
    return get_plugin_manager()


_stopping = c_byte(False)  # in a worker: whether the comparison ends
_at_work = False  # in a worker: whether it has a job


def _start_worker(threads: int, started: Synchronized[int], stopping: c_byte) -> None:
    global _stopping
    _stopping = stopping
    print_to_stderr()
    log_to(PlainConsole(stderr=True))
    with started.get_lock():
        index, started.value = started.value, started.value + 1
    if gpus := visible_gpus():  # before this process uses one
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[index % len(gpus)]
    torch.set_num_threads(threads)
    signal.signal(signal.SIGTERM, _told_to_end)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # while it was imported it was held back, as others still are
    on_parent_exit(_stop)


def in_worker(function: Callable[[Job], Result], job: Job) -> Result:
    """In a worker: the result of a job.

    Raises:
        Preempted: where the comparison ends: a pool hands out jobs before their turn, and these cannot be cancelled.
        Crashed: in place of what is no error of this package: its own class may not survive the way back, and would end all.
    """
    global _at_work
    if _stopping.value:
        raise Preempted("the comparison ends", signal.SIGTERM)
    _at_work = True
    try:
        return function(job)
    except (AmdPluginError, KeyboardInterrupt):
        raise
    except BaseException as error:  # of libraries, plugins and devices
        refused = refusal(error)
        raise Crashed(in_words(error) if refused is None else f"{disk_in_words(refused)}. {remedy(refused)}") from error
    finally:
        _at_work = False


def _told_to_end(signum: int, frame: FrameType | None) -> None:
    """Ends the job, where the comparison ends; a run that is being trained answers by itself, with a checkpoint.

    The process goes on until the pool lets it go: one that waits for a job has a lock, without which no other could leave, and
    the pool terminates all others once one has died. A signal to this process alone ends it, as it ends any.
    """
    for _ in range(10 * SAME_SIGNAL):
        if _stopping.value:
            break
        time.sleep(0.1)
    else:
        os._exit(TERMINATED)
    if _at_work:
        raise Interrupted(signum)


def _ready() -> None:
    """Nothing, in a worker that has started."""


def _stop() -> None:
    _stopping.value = True
    if _at_work:
        os.kill(os.getpid(), signal.SIGTERM)
    for _ in range(10 * GRACE):
        if not _at_work:
            break
        time.sleep(0.1)
    os._exit(TERMINATED)
