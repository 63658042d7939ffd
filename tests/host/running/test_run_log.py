"""What a run prints between two lines of metrics, and what counts as the time of an update."""

import io
import time
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from rich.console import Console

from amd_plugin.errors import InputError
from amd_plugin.host import run
from amd_plugin.host.running import run_log
from amd_plugin.host.running.run_log import RunLog


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until a test moves it."""
    moved = SimpleNamespace(now=0.0)
    monkeypatch.setattr(run_log, "time", SimpleNamespace(monotonic=lambda: moved.now))
    return moved


def log_to(tmp_path, **console):
    written = io.StringIO()
    return RunLog(tmp_path / "metrics.jsonl", 0, 100, Accelerator(cpu=True), Console(file=written, **console)), written


def test_updates_of_many_seconds_are_shown_before_their_metrics(tmp_path, clock):
    log, written = log_to(tmp_path)
    for _ in range(5):
        clock.now += 4
        log.add({"loss/student": torch.tensor(1.0)})
    assert written.getvalue().splitlines() == ["step 3/100"], "one line in ten seconds"
    log.write(5)
    assert "step 5/100  student 1.0000" in written.getvalue() and "4 s/update" in written.getvalue()
    log.close()


def test_an_update_of_minutes_is_shown_while_it_lasts(tmp_path, monkeypatch):
    monkeypatch.setattr(run_log, "EVERY", 0.01)
    log, written = log_to(tmp_path)
    while "step 1/100  ... " not in written.getvalue():
        time.sleep(0.01)
    with log.pausing("evaluating"):  # says so itself
        time.sleep(0.05)
        said = written.getvalue()
        time.sleep(0.1)
        assert written.getvalue() == said
    log.add({})
    while "step 2/100  ... " not in written.getvalue():
        time.sleep(0.01)
    log.close()


def test_the_bar_moves_with_every_update(tmp_path):
    log, _ = log_to(tmp_path, force_terminal=True)
    for _ in range(3):
        log.add({})
    assert log._bar.tasks[0].completed == 3
    log.close()


def test_a_checkpoint_is_no_part_of_the_time_of_an_update(tiny, plugins, tmp_path, monkeypatch, clock):
    saved, save = [], run.save

    def slow(*arguments):
        path = save(*arguments)
        clock.now += 100
        saved.append(path)
        return path

    monkeypatch.setattr(run, "save", slow)
    written = io.StringIO()
    settings = ("train.checkpoint_every=1", "train.log_every=4", "train.max_steps=4")
    run.train(tiny(*settings), plugins, tmp_path / "run", console=Console(file=written, width=200))
    (rate,) = [line for line in written.getvalue().splitlines() if line.startswith("step 4/4")]
    assert len(saved) == 4 and " 0 ms/update" in rate
    assert "saving a checkpoint" not in written.getvalue(), "it takes a moment"


def test_lines_that_a_checkpoint_counts_and_a_log_lacks_are_told(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n')
    assert run_log.cut(path, 2, 2) == 2 and run_log.cut(path, 2, None) == 2 and not caplog.text
    assert run_log.cut(path, 4, 4) == 2 and "metrics.jsonl: has 2 of the 4 lines" in caplog.text
    path.unlink()
    assert run_log.cut(path, 4, 4) == 0 and "has 0 of the 4 lines" in caplog.text


def test_a_line_of_metrics_is_json_whatever_a_metric_is(tmp_path):
    log, _ = log_to(tmp_path)
    log.record(1, {"a": float("inf"), "b": -float("inf"), "c": float("nan"), "d": 1.5})
    log.close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "d": 1.5}\n'


@pytest.mark.parametrize("step", ["Infinity", "1e400", "NaN", "-1", "1.5", "1e300"])
def test_a_line_is_of_a_whole_number_of_steps(step, tmp_path):
    """Everything that reads a log takes `int` of it."""
    file = tmp_path / "metrics.jsonl"
    file.write_text(f'{{"step": {step}, "a": 1.0}}\n{{"step": 2.0, "a": 1.0}}\n')
    assert run_log.read(file) == [{"step": 2.0, "a": 1.0}]
    with pytest.raises(InputError, match="a line has no step"):
        run_log.read(file, strict=True)
