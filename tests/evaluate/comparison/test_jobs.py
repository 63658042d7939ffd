"""What a comparison says while its runs are made."""

import errno
import io
import logging
import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from amd_plugin import interrupts
from amd_plugin.disk import NotWritten
from amd_plugin.errors import InputError, RunError
from amd_plugin.evaluate.comparison import compare as comparison
from amd_plugin.evaluate.comparison import jobs
from amd_plugin.evaluate.comparison.arms import Arm, arms, parse_seeds
from amd_plugin.evaluate.comparison.jobs import Job, run_jobs
from amd_plugin.evaluate.comparison.result import run_folder
from amd_plugin.host.running import run_cost
from amd_plugin.host.running.preemption import Preempted, Preemption
from amd_plugin.interrupts import FIRST


def test_a_comparison_is_never_silent_for_long(monkeypatch, tmp_path):
    monkeypatch.setattr(jobs, "EVERY", 0.01)
    said, printed = io.StringIO(), threading.Event()
    console = Console(file=said)
    print_line = console.print

    def note(*words, **options):
        print_line(*words, **options)
        printed.set()

    monkeypatch.setattr(console, "print", note)

    def work(job):  # ends when the console has said something, so that no time is asserted
        assert printed.wait(60)
        return {"tv": 0.5}

    with ThreadPoolExecutor(1) as pool:
        results = run_jobs(pool, work, [Job("modes2d", (), tmp_path, seed) for seed in (0, 1)], console)
    assert results == {("teacher", 0): {"tv": 0.5}, ("teacher", 1): {"tv": 0.5}}
    assert "0 of 2 finished" in said.getvalue() and "[2/2] teacher, seed 1: tv 0.500" in said.getvalue()


def test_all_workers_start_before_the_first_job():
    before = set(multiprocessing.active_children())
    with jobs.worker_pool(2, threads=1):
        started = set(multiprocessing.active_children()) - before
        for process in started:
            process.kill()  # what they import takes seconds, and nothing is asked of them
    assert len(started) == 2


@pytest.mark.parametrize(("text", "seeds"), [("3", [0, 1, 2]), ("3,5", [3, 5]), ("5,", [5]), ("0,", [0])])
def test_seeds_are_a_number_or_named(text, seeds):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", ",", "0", "5,,", "5,5", "-1,", "1.5", "one"])
def test_other_seeds_are_refused(text):
    with pytest.raises(InputError, match="--seeds: must be a number of seeds"):
        parse_seeds(text)


def test_seeds_and_arms_are_counted_before_they_are_made(plugins):
    """Each was a MemoryError, or no end."""
    with pytest.raises(InputError, match="--select-seeds: must be 10,000 seeds at most"):
        parse_seeds("100000000000000", "--select-seeds")
    grid = [f"train.{key}=1,2,3,4,5,6,7,8,9" for key in "abcdefghijklmnopqrst"]
    with pytest.raises(InputError, match=r"--tune: makes 12,157,665,459,056,928,801 arms of amd, one for each combination"):
        arms(["amd"], plugins, tune=grid)


@pytest.mark.parametrize(("each", "measured"), [(0.1, 3), (1.5, 2), (30.0, 1)])
def test_an_estimate_takes_no_more_updates_than_it_needs(each, measured, monkeypatch, tmp_path, caplog):
    """Three, or as many as begin within two seconds, after one that allocates; its teacher is nothing to warn of."""
    clock, trainers = [0.0], []

    class SlowTrainer:
        rewards = None

        def __init__(self, *_):
            self.cycles = 0
            trainers.append(self)

        def cycle(self):
            self.cycles += 1
            clock[0] += each
            logging.getLogger("amd_plugin.rewards").warning("rewards of an untrained teacher are all equal")

    monkeypatch.setattr(jobs, "Trainer", SlowTrainer)
    monkeypatch.setattr(jobs.time, "monotonic", lambda: clock[0])
    seconds = jobs.seconds_per_update(Job("modes2d", (), tmp_path, 0, Arm("dmd", "dmd")))
    assert seconds == pytest.approx(each) and trainers[0].cycles == 1 + measured
    assert not caplog.records
    logging.getLogger("amd_plugin").warning("logged again")
    assert caplog.messages == ["logged again"]


def test_a_run_of_a_comparison_keeps_what_it_says_of_its_own_cost(monkeypatch, tmp_path):
    own, folder = run_cost.Cost(seconds_per_update=1.5, gigabytes=0.5), run_folder(tmp_path, "dmd", 0)

    def train(recipe, plugins, output, resume):
        output.mkdir(parents=True)
        run_cost.write(output, own)
        return {"tv": 0.5}

    monkeypatch.setattr(jobs.run, "train", train)
    jobs.train_arm(Job("modes2d", (), tmp_path, 0, Arm("dmd", "dmd")))
    assert run_cost.read(folder) == own and jobs.processor_seconds(folder) is not None
    (folder / run_cost.FILE).write_text('{"processor_seconds": 3.0}')
    assert run_cost.read(folder) is None, "as comparisons wrote it before: the report said 0 s and 0.0 GB"


def test_workers_share_out_the_gpus(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, 5")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert jobs.visible_gpus() == ["3", "5"]
    monkeypatch.setattr(jobs, "visible_gpus", lambda: ["3", "5"])
    monkeypatch.setattr(jobs, "on_parent_exit", lambda stop: None)
    monkeypatch.setattr(jobs.signal, "signal", lambda signum, handler: None)
    started, seen = multiprocessing.get_context("spawn").Value("i", 0), []
    for _ in range(3):
        jobs._start_worker(torch.get_num_threads(), started, jobs.c_byte(False))
        seen.append(os.environ["CUDA_VISIBLE_DEVICES"])
    assert seen == ["3", "5", "3"]
    monkeypatch.undo()
    assert jobs.visible_gpus() == [str(index) for index in range(torch.cuda.device_count())]


def killed(job):
    os._exit(9)


def warned(job):
    logging.getLogger("somebody").warning("\x1b]0;taken\x07")
    return {}


def test_a_worker_that_is_killed_is_said_and_one_at_a_terminal_hears_no_signal(tmp_path, capfd):
    before = set(multiprocessing.active_children())
    with pytest.raises(RunError, match="a worker process was ended from outside"), jobs.worker_pool(1, threads=1) as pool:
        for worker in set(multiprocessing.active_children()) - before:
            os.kill(worker.pid, signal.SIGINT)  # as Ctrl-C does to a whole group, here while it imports
            os.kill(worker.pid, signal.SIGHUP)
        assert run_jobs(pool, warned, [Job("modes2d", (), tmp_path, 0)], None) == {("teacher", 0): {}}
        with pytest.raises(BrokenProcessPool):
            run_jobs(pool, killed, [Job("modes2d", (), tmp_path, 0)], None)
        run_jobs(pool, warned, [Job("modes2d", (), tmp_path, 0)], None)  # the pool refuses it: that was a traceback
    said = capfd.readouterr().err
    assert "\\x1b]0;taken" in said and "\x1b" not in said and "\x07" not in said and "Traceback" not in said


class Odd(Exception):
    """An error of a library that does not survive its way back from another process."""

    def __init__(self, code, reason):
        super().__init__(f"{reason} ({code})")


FAULTS = {1: Odd(3, "no [memory]"), 2: SystemExit(0), 3: NotWritten(errno.ENOSPC, "No space left on device", "a.bin")}


def out_of_order(job):
    if job.seed == 4:
        raise InputError("model.path: is no pipeline")
    if job.seed in FAULTS:
        raise FAULTS[job.seed]
    return {"tv": 0.5}


def test_whatever_a_job_raises_fails_that_job_alone(tmp_path, forked_workers):
    """OutOfMemoryError ended the comparison in a traceback, and SystemExit of a plugin in nothing at all."""
    said = io.StringIO()
    with jobs.worker_pool(1, threads=1) as pool, pytest.raises(RunError) as failure:
        run_jobs(pool, out_of_order, [Job("modes2d", (), tmp_path, seed) for seed in range(6)], Console(file=said))
    assert str(failure.value).splitlines()[:-1] == [
        "teacher, seed 1: Odd: no [memory] (3)", "teacher, seed 2: SystemExit: 0",
        "teacher, seed 3: a.bin: cannot be written: No space left on device. Make room",
        "teacher, seed 4: model.path: is no pipeline",
    ]  # fmt: skip
    assert "out_of_order" in str(failure.value.__cause__), "the traceback of the first, under AMD_PLUGIN_DEBUG"
    assert "[6/6] teacher, seed 5: tv 0.500" in said.getvalue()


def broken_probe(job):
    raise RuntimeError("CUDA error: out of memory")


def test_a_probe_that_fails_costs_the_estimate_alone(tiny, tmp_path, monkeypatch, caplog, forked_workers):
    monkeypatch.setattr(comparison, "seconds_per_update", broken_probe)
    with jobs.worker_pool(1, threads=1) as pool:
        probe = Job("modes2d", (), tmp_path, 0, Arm("dmd", "dmd"))
        assert comparison._expected(pool, probe, tiny(), 2, 1, tmp_path) is None
    assert "how long the runs take is not known: RuntimeError: CUDA error: out of memory" in caplog.text


def stopped_by_a_signal(job):
    """Runs of seeds 0 and 1 save when the signal comes, one soon and one late; that of seed 2 is at work in its preparations."""
    (job.output / f"begun-{job.seed}").touch()
    if job.seed == 2:
        time.sleep(600)
    if job.seed < 2:
        with Preemption() as preemption:
            while not preemption.requested(SimpleNamespace(num_processes=1)):
                time.sleep(0.01)
            time.sleep(2 * FIRST * job.seed)
            (job.output / f"saved-{job.seed}").touch()
        raise Preempted("a checkpoint was written", signal.SIGTERM)
    return {}


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_comparison_with_checkpoints_and_without_another_run(signum, tmp_path, monkeypatch, forked_workers):
    """A pool hands out jobs before their turn, which cannot be cancelled: each worker trained another run, to its end.

    And it terminates all others when one has died, which a run takes for a second signal, and ends without its checkpoint.
    """
    monkeypatch.setattr(interrupts, "received", interrupts.Received())
    handler = signal.signal(signum, interrupts.leave)

    def signalled():
        while len([*tmp_path.glob("begun-*")]) < 3:
            time.sleep(0.01)
        time.sleep(0.5)
        os.kill(os.getpid(), signum)

    sender = threading.Thread(target=signalled)
    sender.start()
    try:
        with pytest.raises(interrupts.Interrupted), jobs.worker_pool(4, threads=1) as pool:
            run_jobs(pool, stopped_by_a_signal, [Job("modes2d", (), tmp_path, seed) for seed in range(3)], None)
        with pytest.raises(interrupts.Interrupted), jobs.worker_pool(1, threads=1) as pool:
            (tmp_path / "begun-2").unlink()
            sender = threading.Thread(target=signalled)
            sender.start()
            run_jobs(pool, stopped_by_a_signal, [Job("modes2d", (), tmp_path, seed) for seed in (2, 3, 4)], None)
    finally:
        signal.signal(signum, handler)
        sender.join()
    assert {path.name for path in tmp_path.iterdir()} == {"begun-0", "begun-1", "begun-2", "saved-0", "saved-1"}
