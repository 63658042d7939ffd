"""The reward-hacking alarm: what rings it, what does not, and what a run does then."""

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amd_plugin.errors import RunError
from amd_plugin.evaluate.report.report import write_report
from amd_plugin.host import checkpoint, run
from amd_plugin.host.evaluation.hacking_alarm import HackingAlarm, windows

BETTER = {"precision": "up", "frechet": "down", "diversity": "one", "recall": "up"}


def history(length, **values):
    """Evaluations in which each metric runs through a function of time; the reward's samples have a spread of 1."""
    values = {"evaluated_spread/r": lambda t: 1.0, **{name.replace("__", "/"): value for name, value in values.items()}}
    return [{"step": 10.0 * t, **{name: value(t) for name, value in values.items()}} for t in range(1, length + 1)]


def rings(rows, weights=None, directions=BETTER):
    alarm = HackingAlarm(weights or {"r": 1.0}, directions)
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


SHORT = (
    "model.teacher.steps=600", "model.width=32", "train.max_steps=96", "train.batch_size=96", "train.group_size=8",
    "train.evaluate_every=12", "train.student_lr=2e-3", "train.fake_lr=4e-3", "train.ema=0.9", "evaluate.samples=800",
)  # fmt: skip


def rang(folder):
    return [line["step"] for line in map(json.loads, (folder / "metrics.jsonl").open()) if line.get("hacking_alarm")]


def test_an_honest_run_is_left_alone(tiny, plugins, tmp_path, caplog):
    run.train(tiny(*SHORT), plugins, tmp_path / "run")
    assert rang(tmp_path / "run") == [] and "hacked" not in caplog.text


def test_a_hacked_run_stops_if_it_may_and_goes_on_if_it_must(tiny, plugins, tmp_path, caplog):
    hackable = (*SHORT, "rewards=[{name: hackable}]")
    folder, stopping = tmp_path / "run", tiny(*hackable, "train.stop_on_hacking=true")
    with pytest.raises(
        RunError, match=r"'hackable' may be hacked(.|\n)*set train.stop_on_hacking to false(.|\n)*saved"
    ) as stop:
        run.train(stopping, plugins, folder)
    assert "Lower objective.sharpening (now 2.5), or give it less weight" in str(stop.value)
    (first,) = rang(folder)
    (saved,) = checkpoint.available(folder / "checkpoints")
    assert saved.name == f"step-{first:06d}"
    # The memory is in the checkpoint: the next evaluation rings at once, though four are needed.
    with pytest.raises(RunError, match="may be hacked: from step 12"):
        run.train(stopping, plugins, tmp_path / "elsewhere", resume=str(saved))
    assert rang(tmp_path / "elsewhere") == [first + 12]

    caplog.clear()
    run.train(tiny(*hackable), plugins, folder, resume="auto")
    assert rang(folder)[:2] == [first, first + 12]
    assert len([record for record in caplog.records if "may be hacked" in record.message]) == 1
    html = write_report([folder], tmp_path / "report.html", plugins).read_text()
    assert f"amd, seed 0: from step {first}, at {len(rang(folder))} evaluations" in html
