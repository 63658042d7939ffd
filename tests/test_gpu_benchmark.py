"""The GPU benchmark, on the CPU and on tiny pipelines: what it measures, and what it says of an arm that fails."""

import argparse
import runpy
from pathlib import Path

import pytest

SCRIPT = str(Path(__file__).parents[1] / "benchmarks" / "gpu.py")


@pytest.mark.parametrize(
    ("arm", "model"), [("wan, shared base, amd, harvest", "wan"), ("sdxl, separate, amd, harvest", "sdxl")]
)
def test_an_arm_on_the_cpu(tmp_path, arm, model):
    gpu = runpy.run_path(SCRIPT)
    gpu["save_pipeline"](model, tmp_path, tiny=True, device="cpu")
    result = gpu["measure"](arm, tmp_path, tiny=True, cycles=1)
    assert set(result["seconds"]) == {"cycle", "fake_score", "student"} and set(result["losses"]) == {
        "loss/student", "loss/fake_score",
    }  # fmt: skip
    assert result["peak"] is None and result["planned"] > 0 and result["operations"] > 0 and result["utilisation"] > 0
    assert f"| {arm} | " in gpu["table"]({arm: result})


def test_an_arm_that_fails_stands_in_the_table(tmp_path):
    gpu = runpy.run_path(SCRIPT)
    arm = "wan, short, bf16"
    failed = gpu["run_arm"](arm, tmp_path / "nothing", argparse.Namespace(cycles=1, tiny=True), 120.0)
    assert "nothing" in failed["failed"]
    assert f"| {arm} | {failed['failed']} |" in gpu["table"]({arm: failed})
    slow = gpu["run_arm"](arm, tmp_path, argparse.Namespace(cycles=1, tiny=True), 0.01)
    assert "no result within" in slow["failed"]
