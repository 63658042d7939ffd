"""The same run under plain python, torchrun and accelerate launch, through the command line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import TINY

RECIPE = (
    "train",
    "modes2d",
    *(
        f"--set={s}"
        for s in (*TINY, "model.student_steps=2", "train.max_steps=3", "train.group_size=16", "distributed.device=cpu")
    ),
)
BIN = Path(sys.executable).parent


def launch(launcher, *arguments, cwd):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [str(part) for part in (*launcher, *RECIPE, *arguments)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=240)


LAUNCHERS = {
    "torchrun": (
        BIN / "torchrun",
        "--nproc_per_node=2",
        "--master_port=0",
        "--rdzv_backend=c10d",
        "--rdzv_endpoint=localhost:0",
        "-m",
        "amd_plugin.cli",
    ),
    "accelerate": (
        BIN / "accelerate",
        "launch",
        "--cpu",
        "--num_processes=2",
        "--num_machines=1",
        "--mixed_precision=no",
        "--dynamo_backend=no",
        "--main_process_port=29517",
        "-m",
        "amd_plugin.cli",
    ),
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_processes_equal_one_on_the_joined_batch(launcher, tmp_path):
    alone = launch((sys.executable, "-m", "amd_plugin.cli"), "--output", "alone", cwd=tmp_path)
    assert alone.returncode == 0, alone.stderr
    together = launch(LAUNCHERS[launcher], "--output", "together", cwd=tmp_path)
    assert together.returncode == 0, together.stderr
    assert together.stdout.count("report:") == 1
    for part in ("student", "fake_score"):
        one, two = (
            load_file(tmp_path / run / "checkpoints" / "step-000003" / f"{part}.safetensors") for run in ("alone", "together")
        )
        for name in one:
            torch.testing.assert_close(one[name], two[name], rtol=1e-4, atol=1e-4)
    one, two = (
        [json.loads(line) for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
        for run in ("alone", "together")
    )
    assert [line["step"] for line in one] == [line["step"] for line in two]
    for key in ("loss/student", "objective/zone_share", "reward/classifier"):
        assert one[0][key] == pytest.approx(two[0][key], abs=1e-4)


def test_a_reward_that_raises_on_one_rank_stops_all_of_them(tmp_path):
    plugin = tmp_path / "rank_one.py"
    plugin.write_text(
        "import os, sys, amd_plugin\n"
        "@amd_plugin.hookimpl\n"
        "def distill_rewards():\n"
        "    def reward(media, prompts):\n"
        "        if os.environ['RANK'] == '1':\n"
        "            raise RuntimeError('rank one had enough')\n"
        "        return media[:, 0]\n"
        "    return {'moody': lambda: reward}\n"
        "import amd_plugin.plugins as plugins\n"
        "original = plugins.get_plugin_manager\n"
        "def with_ours():\n"
        "    manager = original()\n"
        "    manager.register(sys.modules[__name__], 'moody')\n"
        "    return manager\n"
        "plugins.get_plugin_manager = with_ours\n"
        "from amd_plugin.cli import main\n"
        "main()\n"
    )
    done = launch((*LAUNCHERS["torchrun"][:-2], plugin), "--set=rewards=[{name: moody}]", "--output", "run", cwd=tmp_path)
    assert done.returncode != 0
    assert "rank one had enough" in done.stderr and "a reward failed on another process" in done.stderr


def test_bad_input_under_a_launcher_ends_all_processes(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "cat.jpg").write_text("")
    done = launch(LAUNCHERS["torchrun"], "--output", "run", cwd=tmp_path)
    assert done.returncode != 0 and "holds no run" in done.stderr
