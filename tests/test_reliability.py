"""The short form of benchmarks/reliability.py: more than fifty kills, full disks, flipped bytes, signals, a rank that dies, a soak."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "reliability.py"


def test_runs_survive_and_are_equal_to_the_bit(tmp_path):
    done = subprocess.run(
        [sys.executable, SCRIPT, "--short", "--output", tmp_path], capture_output=True, text=True, timeout=1500
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert {row["kind"] for row in rows} == {"kills", "disk", "bytes", "signals", "ranks", "soak"}
    assert sum(row.get("kills", 0) for row in rows) >= 50
