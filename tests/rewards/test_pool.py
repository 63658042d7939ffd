"""Workers that do what rewards must not: nothing hangs for longer than is said, and nothing of them is left."""

import logging
import multiprocessing
import os
import signal
import tempfile
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from amd_plugin.config import RewardConfig
from amd_plugin.evaluate.comparison import jobs
from amd_plugin.rewards import pool
from tests.rewards.test_reward_set import MEDIA, PROMPTS, rewards  # noqa: F401 (a fixture)


def alive(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def ended(process):
    for _ in range(100):
        if not alive(process):
            return True
        time.sleep(0.1)
    return False


@pytest.fixture
def left(tmp_path, monkeypatch):
    """What this test's own workers have left: semaphores and temporary folders, under names that no other process uses."""
    own = f"{os.getpid()}-{tmp_path.name}"
    monkeypatch.setitem(multiprocessing.current_process()._config, "semprefix", f"/mp-{own}")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()

    def found():
        shared = Path("/dev/shm").glob(f"sem.mp-{own}*") if os.path.isdir("/dev/shm") else ()
        return {*shared, *(tmp_path / "temporary").glob("amd-plugin-reward-*")}

    return found


def test_nothing_of_a_worker_is_left_whatever_it_does(rewards, left, tmp_path, monkeypatch, caplog):  # noqa: F811
    monkeypatch.setattr(pool, "TOLD", 0.2)
    note = tmp_path / "note"
    several = rewards(
        {"name": "messy", "only": 4, "note": str(note), "timeout": 2.0, "pool": 1, "on_error": "neutral"},
        {"name": "leaving", "how": "GeneratorExit", "pool": 1, "on_error": "neutral"},
        {"name": "sluggish", "note": str(tmp_path / "built"), "pool": 1, "on_error": "neutral"},
    )
    assert several.pools["leaving"]._workers[0]._limit < pool.START_LIMIT
    causes = several(MEDIA, PROMPTS).causes
    assert causes == {"messy": "TimeoutError: no answer within 2 s", "leaving": "GeneratorExit: 3", "sluggish": pool.DIED}
    assert left(), "while the workers run there is something that can be left"
    program, folder = note.read_text().split(" ", 1)
    assert ended(int(program)), "what a worker has started outlives it"
    assert not Path(folder).exists()
    monkeypatch.setattr(several.pools["sluggish"]._workers[0], "_limit", 1.0)
    again = several(MEDIA[:2], PROMPTS[:2])
    assert again.causes["sluggish"] == "reward 'sluggish': its worker process did not start within 1 s"
    assert again.each["messy"].tolist() == [0, 2]
    assert "its worker process is starting; waiting for it for another" in caplog.text
    workers = [process for one in several.pools.values() for process in one.process_ids]
    several.close()
    assert all(map(ended, workers)) and not multiprocessing.active_children()
    del several
    assert not left()


@pytest.mark.parametrize("how", ["GeneratorExit", "SystemExit"])
def test_what_is_no_exception_is_a_failure_here_too(rewards, how):  # noqa: F811
    assert rewards({"name": "leaving", "how": how, "on_error": "neutral"})(MEDIA, PROMPTS).causes == {"leaving": f"{how}: 3"}


def test_what_is_no_exception_does_not_get_out_of_a_thread(rewards):  # noqa: F811
    entry = {"name": "leaving", "how": "KeyboardInterrupt", "timeout": 20.0, "on_error": "neutral"}
    assert rewards(entry)(MEDIA, PROMPTS).causes == {"leaving": "KeyboardInterrupt: 3"}


def loud():
    def reward(media, prompts):
        logging.getLogger("somebody").warning("\x1b]0;taken\x07")
        return media[:, 0]

    return reward


def test_a_worker_hears_no_signal_while_it_imports_and_moves_no_terminal(capfd):
    """Ctrl-C goes to a whole group: the worker's imports were a traceback on the terminal."""
    worker = pool._Worker(pool.WorkerSpec(RewardConfig(name="loud"), loud, None, "cpu", 1))
    try:
        for process in worker.process_ids:
            os.kill(process, signal.SIGINT)
        assert worker.info().problem == ""
        batch = (save({"": torch.tensor([[1.0]])}), ["a cat"], {})
        assert worker.result(worker.submit(batch, 0), None) == ([1.0], "")
    finally:
        worker.kill()
    said = capfd.readouterr().err
    assert "\\x1b]0;taken" in said and "\x1b" not in said and "\x07" not in said and "Traceback" not in said


def talkative():
    os.write(1, b"built")  # as print does, whose stream is pytest's own here
    return lambda media, prompts: [0.0] * len(media)


@pytest.mark.parametrize("of", ["reward", "comparison"])
def test_what_a_worker_prints_is_no_part_of_a_commands_result(of, tmp_path, capfd):
    context = multiprocessing.get_context("spawn")
    begin = {
        "reward": lambda: pool._begin(
            pool.WorkerSpec(RewardConfig(name="talkative"), talkative, None, "cpu", 1), str(tmp_path)
        ),
        "comparison": lambda: jobs._start_worker(1, context.Value("i", 0), context.RawValue("b", False)) or talkative(),
    }
    if not (child := os.fork()):
        try:
            begin[of]()
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    printed = capfd.readouterr()
    assert "built" in printed.err and not printed.out
