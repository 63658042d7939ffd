"""The short form of benchmarks/reliability.py: fifty kills in eight places, full disks, flipped bytes, signals, a rank that dies, a soak."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "reliability.py"


def test_runs_survive_and_are_equal_to_the_bit(tmp_path):
    done = subprocess.run(
        [sys.executable, SCRIPT, "--short", "--output", tmp_path], capture_output=True, text=True, timeout=1500
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert {row["kind"] for row in rows} == {"kills", "disk", "bytes", "signals", "ranks", "soak"}
    kills = [row for row in rows if row["kind"] == "kills"]
    assert sum(row["kills"] for row in kills) >= 50 and len({row["what"] for row in kills}) == 8, "not in every place"


def test_a_difference_is_told_with_all_its_files_and_where_it_began(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    from reliability_run import different

    one, two = tmp_path / "one", tmp_path / "two"
    for run in (one, two):
        for step in (2, 4):
            folder = run / "checkpoints" / f"step-{step:06d}"
            folder.mkdir(parents=True)
            for name in ("ema.safetensors", "student.safetensors"):
                (folder / name).write_bytes(b"weights")
        (run / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n')
        (run / "evaluation.json").write_text("{}")
    assert different(one, two) == ""
    for step in (2, 4):
        (two / "checkpoints" / f"step-{step:06d}" / "ema.safetensors").write_bytes(b"others")
    (two / "evaluation.json").unlink()
    unlike = "checkpoints/step-000002/ema.safetensors, checkpoints/step-000004/ema.safetensors, evaluation.json"
    assert different(one, two) == f"{unlike}; first in step-000002 (ema.safetensors)"
    (two / "metrics.jsonl").write_text('{"step": 1}\n')
    assert 'evaluation.json, metrics.jsonl; first in line 2 ({"step": 2} / none), step-000002' in different(one, two)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("checkpoints/step-000002/ema.safetensors", True), (".student.host_0-1.tmp/weights", True), ("samples/a.png", True),
        ("student/curves.png", True), ("checkpoints/set-aside/step-000006/a", False), ("run.json", False),
    ],
)  # fmt: skip
def test_files_that_only_one_of_two_runs_has_are_a_difference(name, told, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    from reliability_run import different

    one, two = tmp_path / "one", tmp_path / "two"
    for run in (one, two):
        (run / "checkpoints" / "step-000004").mkdir(parents=True)
    (one / name).parent.mkdir(parents=True, exist_ok=True)
    (one / name).write_bytes(b"")
    assert [bool(different(*pair)) for pair in ((one, two), (two, one))] == [told, told]
    lacks = (name.partition("/")[0],)
    assert different(one, two, lacks) == "" and bool(different(two, one, lacks)) == told
