"""The launch files: shells read them, their flags exist, and their numbers are the planner's."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from amd_plugin.plan.memory import BUCKET, GATHERED

LAUNCH = Path(__file__).parents[2] / "recipes" / "launch"
LARGEST = 6 * 5120 * 5120  # Wan2.1-14B's time projection


@pytest.mark.parametrize("script", sorted(LAUNCH.glob("*.sh")), ids=lambda path: path.name)
def test_scripts_are_shell_and_their_flags_exist(script, cli):
    subprocess.run(["bash", "-n", script], check=True)
    text = "\n".join(line for line in script.read_text().splitlines() if not line.lstrip().startswith("#"))
    command = text[text.index("-m amd_plugin.cli train") :]
    _, help_text = cli("train", "--help")
    for flag in re.findall(r"--[a-z-]+", command):
        assert flag in help_text
    if "torchrun" in text:
        from torch.distributed.run import get_args_parser

        options = {option for action in get_args_parser()._actions for option in action.option_strings}
        assert set(re.findall(r"--[a-z-]+", text[text.index("torchrun") : text.index("-m amd_plugin")])) <= options


def test_accelerate_takes_its_config():
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    file = LAUNCH / "accelerate.yaml"
    loaded = load_config_from_file(str(file))
    assert loaded.num_processes == 64 and loaded.num_machines == 8 and str(loaded.distributed_type).endswith("MULTI_GPU")
    assert not getattr(loaded, "deepspeed_config", None)
    settings = yaml.safe_load(file.read_text())
    keys = {action.dest for action in launch_command_parser()._actions} | set(vars(loaded))
    assert set(settings) <= keys | {"compute_environment", "distributed_type"}


@pytest.mark.parametrize("name", ["teacher", "trained"])
def test_deepspeed_takes_its_configs(name):
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    config = json.loads((LAUNCH / f"deepspeed_{name}_zero3.json").read_text())
    assert "auto" not in json.dumps(config)
    zero = config["zero_optimization"]
    taken = DeepSpeedZeroConfig(**zero)
    assert taken.stage == 3 and not taken.model_extra
    # What the planner counts as gathered and as buckets.
    assert zero["stage3_max_live_parameters"] + zero["stage3_prefetch_bucket_size"] == GATHERED * LARGEST
    assert zero.get("reduce_bucket_size", BUCKET) == BUCKET


@pytest.mark.parametrize(("ends_with", "requeued"), [(143, True), (0, False), (1, False)])
def test_the_job_goes_back_into_the_queue_after_a_checkpoint_only(tmp_path, ends_with, requeued):
    """The script itself, with stand-ins for SLURM's two commands: srun runs one real process, which gets the signal."""
    tools = {
        "srun": 'while [ "$1" != bash ]; do shift; done\nSLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NTASKS=1 exec "$@"\n',
        "scontrol": f'[ "$1" = show ] && echo localhost || echo "$@" >> {tmp_path}/requeued\n',
        "python": (
            f'trap "sleep 0.5; exit {ends_with}" TERM\necho "$RANK $WORLD_SIZE $MASTER_ADDR $*" > {tmp_path}/started\n'
            "kill -TERM $JOB\nfor _ in $(seq 100); do sleep 0.1; done\n"
        ),
    }
    for name, body in tools.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}")
        (tmp_path / name).chmod(0o755)
    script = f'export JOB=$$; exec bash "{LAUNCH / "slurm.sh"}"'
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n"}
    done = subprocess.run(
        ["bash", "-c", script], env=environment, timeout=60, capture_output=True, text=True, cwd=LAUNCH.parent
    )
    started = (tmp_path / "started").read_text()
    assert started.startswith("0 1 localhost -m amd_plugin.cli train wan21_14b_zero3.yaml") and "--resume auto" in started
    assert (tmp_path / "requeued").exists() is requeued, done.stderr
    assert done.returncode == (0 if requeued else ends_with)
    if requeued:
        assert (tmp_path / "requeued").read_text() == "requeue 7\n"


def test_scripts_train_the_edited_copy_beside_them(cli, tmp_path):
    """Under the copy's own name; with a stand-in for torchrun, which runs what it is told to, checked only."""
    code, printed = cli("recipes", "copy", "wan21_14b_zero3", tmp_path / "mine.yaml")
    assert code == 0, printed
    for file in (tmp_path / "launch").iterdir():
        assert "wan21_14b_zero3.yaml" not in file.read_text()
    (tmp_path / "mine.yaml").write_text((tmp_path / "mine.yaml").read_text().replace("max_steps: 600", "max_steps: 0"))
    tool = tmp_path / "torchrun"
    tool.write_text(f'#!/bin/bash\nwhile [ "$1" != -m ]; do shift; done\nexec {sys.executable} "$@" --dry-run\n')
    tool.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "HEAD": "localhost"}
    done = subprocess.run(
        ["bash", tmp_path / "launch" / "torchrun.sh"], env=environment, capture_output=True, text=True, cwd="/"
    )
    assert done.returncode == 2 and "mine.yaml" in done.stderr and "train.max_steps" in done.stderr


def test_a_copied_recipe_brings_its_launch_files(cli, tmp_path):
    code, printed = cli("recipes", "copy", "wan21_14b_zero3", tmp_path)
    assert code == 0, printed
    assert {file.name for file in (tmp_path / "launch").iterdir()} == {file.name for file in LAUNCH.iterdir()}
    again, printed = cli("recipes", "copy", "wan21_14b_zero3", tmp_path)
    assert again == 2 and "exists already" in printed
    other = tmp_path / "other"
    other.mkdir()
    cli("recipes", "copy", "modes2d", other)
    assert sorted(file.name for file in other.iterdir()) == ["modes2d.yaml", "recipe.schema.json"]


def test_all_ways_to_launch_write_to_one_folder():
    folders = [
        re.findall(r"runs/[\w-]+", (LAUNCH / name).read_text()) for name in ("slurm.sh", "torchrun.sh", "accelerate.yaml")
    ]
    assert folders == [["runs/wan21_14b_zero3"]] * 3


def test_commands_in_scripts_are_those_of_this_package():
    done = subprocess.run([sys.executable, "-m", "amd_plugin.cli", "train", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "--resume" in done.stdout
