"""The benchmark of a cycle counts what it says, in the reference host; the hosts' processes are tested by running it."""

import runpy
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from amd_plugin.models.embedded.tiny import tiny_wan

SCRIPT = str(Path(__file__).parents[1] / "benchmarks" / "cycle.py")


def test_rows_of_a_cycle_are_those_of_the_table(tmp_path):
    cycle = runpy.run_path(SCRIPT)
    tiny_wan(cycle["WORDS"], width=24, depth=1, heads=2, patch_size=4).save_pretrained(tmp_path)
    (tmp_path / "prompts.txt").write_text("a red fox\na blue boat\n")
    one, count = cycle["ours"](tmp_path, 4, "amd", "train.rollouts=harvest")
    one()
    counts = count.take()
    counts.pop("gathers")
    rows = Counter({name: number / cycle["BATCH"] for name, number in counts.items()})
    assert rows == {
        "student no graph": 4, "student graph": 1, "fake_score no graph": 1, "fake_score graph": 5, "teacher no graph": 2,
        "decoded": 4,
    }  # fmt: skip
    arm = SimpleNamespace(name="ours, amd, harvest", rows=Counter(rows, gathers=18), seconds=[1.0], peak=10.0)
    host = SimpleNamespace(name="ModelOpt", rows=Counter(), seconds=[4.0], peak=1.0)
    assert "| 4.0 | 1.0 | 1.0 | 5.0 | 2.0 | 13.0 | 18.0 | 4.0 | 1.00 | 10 |" in cycle["table"]([arm])
    assert cycle["ratios"]([arm, host]) == "ours, amd, harvest: 0.25 x ModelOpt's time"


def test_an_unknown_arm_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["cycle.py", "--arms", "FastGen"])
    with pytest.raises(SystemExit):
        runpy.run_path(SCRIPT, run_name="__main__")
    assert "invalid choice: 'FastGen'" in capsys.readouterr().err
