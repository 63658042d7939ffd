"""The reward-hacking alarm: what rings it, what does not, and what a run does then."""

import json
import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amd_plugin.errors import RunError
from amd_plugin.evaluate.report import write_report
from amd_plugin.host import checkpoint, run
from amd_plugin.host.alarm import Alarm, windows

BETTER = {"precision": "up", "frechet": "down", "diversity": "one", "recall": "up"}


def history(length, **values):
    """Evaluations in which each metric runs through a function of time; the reward's samples have a spread of 1."""
    values = {"evaluated_spread/r": lambda t: 1.0, **{name.replace("__", "/"): value for name, value in values.items()}}
    return [{"step": 10.0 * t, **{name: value(t) for name, value in values.items()}} for t in range(1, length + 1)]


def rings(rows, weights=None, directions=BETTER):
    alarm = Alarm(weights or {"r": 1.0}, directions)
    return [finding for row in rows if (finding := alarm.add(row)) is not None]


RISING, FALLING, FLAT = (lambda t: 1 + 0.1 * t), (lambda t: 1 - 0.05 * t), (lambda t: 1.0)


def test_a_reward_that_rises_while_half_of_the_metrics_fall():
    rows = history(
        8, evaluated_reward__r=RISING, held_out__precision=FALLING, held_out__frechet=RISING, held_out__diversity=FLAT,
        held_out__recall=RISING,
    )  # fmt: skip
    found = rings(rows)
    assert [finding.until for finding in found] == [40, 50, 60, 70, 80]
    assert found[-1].falls.keys() == {"precision", "frechet"} and found[-1].judged == 4
    assert str(found[0]).startswith(
        "reward 'r' may be hacked: from step 10 to 40 it rose, 1.1 -> 1.4 (tau +1.00, p 0.042), while 2 of 4 held-out metrics "
        "got worse: precision 0.95 -> 0.8 (tau -1.00, p 0.042), frechet 1.1 -> 1.4 (tau +1.00, p 0.042)"
    )


QUIET = {
    "a trade of one metric for others": dict(held_out__precision=RISING, held_out__frechet=FALLING, held_out__recall=FALLING),
    "metrics that stay": dict(held_out__precision=FLAT, held_out__frechet=FLAT, held_out__recall=FLAT),
    "falls of no size": dict(held_out__precision=lambda t: 1 - 1e-3 * t, held_out__frechet=lambda t: 1 + 1e-3 * t),
    "nothing but the reward": {},
    "a reward that rises by nothing": dict(evaluated_reward__r=lambda t: 1 + 1e-3 * t, held_out__precision=FALLING),
    "a reward that falls too": dict(evaluated_reward__r=FALLING, held_out__precision=FALLING, held_out__recall=FALLING),
    "a metric that is not finite": dict(held_out__precision=lambda t: float("nan" if t == 3 else "inf"), held_out__recall=FLAT),
}


@pytest.mark.parametrize("case", QUIET)
def test_what_leaves_it_quiet(case):
    assert not rings(history(12, **{"evaluated_reward__r": RISING, **QUIET[case]}))


def test_a_single_metric_counts_where_no_other_rises():
    assert rings(history(6, evaluated_reward__r=RISING, held_out__recall=FALLING))


def test_a_ratio_is_judged_by_its_distance_from_one():
    assert rings(
        history(6, evaluated_reward__r=RISING, held_out__diversity=lambda t: 1 + 0.1 * t), directions={"diversity": "one"}
    )
    assert not rings(
        history(6, evaluated_reward__r=RISING, held_out__diversity=lambda t: 0.3 + 0.1 * t), directions={"diversity": "one"}
    )


def test_a_reward_that_is_pushed_down_is_hacked_when_it_falls():
    rows = history(6, evaluated_reward__r=FALLING, held_out__precision=FALLING, held_out__frechet=RISING)
    rows = [{**row, "evaluated_spread/r": 0.5} for row in rows]
    assert rings(rows, {"r": -2.0}) and not rings(rows, {"r": 1.0}) and not rings(rows, {"r": 0.0})


def test_noise_rarely_rings():
    """Eight evaluations of 300 runs without any trend, all metrics one and the same: the worst case."""
    draws = random.Random(0)
    ringing = 0
    for _ in range(300):
        noise = [[draws.gauss(1, 0.3) for _ in range(9)] for _ in range(2)]
        same = lambda t, n=noise: n[1][t]  # noqa: E731
        rows = history(8, evaluated_reward__r=lambda t, n=noise: n[0][t], held_out__precision=same, held_out__recall=same)
        ringing += bool(rings(rows))
    assert ringing <= 0.03 * 300


@given(st.integers(0, 70))
def test_windows_end_now_and_double(length):
    found = [list(window) for window in windows(list(range(length)))]
    assert all(window[-1] == length - 1 for window in found)
    assert [len(window) for window in found] == ([length] if 4 <= length < 8 else [n for n in (8, 16, 32, 64) if n <= length])


HACKED = (
    "rewards=[{name: hackable}]", "train.max_steps=24", "train.batch_size=64", "train.group_size=8", "train.evaluate_every=4",
    "train.student_lr=2e-2", "train.fake_lr=2e-2", "objective.sharpening=4", "model.width=16", "train.warmup_steps=0",
)  # fmt: skip


@pytest.fixture
def restless(monkeypatch):
    """Held-out metrics that fall as the reward rises: what a run this short cannot be trusted to do by itself."""
    from amd_plugin.host.scoring import Scoring
    from amd_plugin.tasks.modes2d import Modes2D

    seen, judge = [0], Modes2D.evaluate

    def evaluate(task, samples, labels):
        seen[0] += 1
        return {**judge(task, samples, labels), "precision": 1 / seen[0], "tv": float(seen[0])}

    monkeypatch.setattr(Modes2D, "evaluate", evaluate)
    monkeypatch.setattr(
        Scoring,
        "evaluate",
        lambda self, media, labels: {"evaluated_reward/hackable": seen[0], "evaluated_spread/hackable": 1.0},
    )
    return seen


def test_a_run_warns_once_says_what_to_change_and_the_report_shows_it(tiny, plugins, tmp_path, restless, caplog):
    run.train(tiny(*HACKED), plugins, tmp_path / "run")
    said = [record.message for record in caplog.records if "may be hacked" in record.message]
    assert len(said) == 1
    assert "Lower objective.sharpening (now 4.0) or objective.strength (now 0.5)" in said[0]
    rang = [line["step"] for line in map(json.loads, (tmp_path / "run" / "metrics.jsonl").open()) if line.get("hacking_alarm")]
    assert rang == [16, 20, 24]
    html = write_report([tmp_path / "run"], tmp_path / "report.html").read_text()
    assert "amd, seed 0: from step 16, at 3 evaluations" in html


def test_a_run_may_stop_then_and_goes_on_from_there(tiny, plugins, tmp_path, restless):
    stopping = tiny(*HACKED, "train.stop_on_hacking=true")
    with pytest.raises(RunError, match=r"reward 'hackable' may be hacked(.|\n)*set train.stop_on_hacking to false(.|\n)*saved"):
        run.train(stopping, plugins, tmp_path / "run")
    assert [path.name for path in checkpoint.available(tmp_path / "run" / "checkpoints")] == ["step-000016"]
    # The memory is in the checkpoint: four evaluations were before it, so the next one rings at once.
    with pytest.raises(RunError, match=re.escape("from step 4 to 20")):
        run.train(stopping, plugins, tmp_path / "elsewhere", resume=str(tmp_path / "run" / "checkpoints" / "step-000016"))
    assert run.train(tiny(*HACKED), plugins, tmp_path / "run", resume="auto")
