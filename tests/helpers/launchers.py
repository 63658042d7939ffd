"""Whole runs through the command line, in two processes by every launcher; and whether two runs trained the same networks."""

import sys

import torch
from safetensors.torch import load_file

from tests.helpers.processes import BIN, run, torchrun

MODULE = ["-m", "amd_plugin.cli"]
ACCELERATE = ["--cpu", "--num_processes=2", "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]
ALONE = [sys.executable, *MODULE]
LAUNCHERS = {
    "torchrun": [*torchrun(2), *MODULE],
    "accelerate": [BIN / "accelerate", "launch", *ACCELERATE, "--main_process_port=0", *MODULE],
    "deepspeed": [BIN / "deepspeed", "--num_gpus=2", "--master_port=29521", "--no_local_rank", "--module", "amd_plugin.cli"],
}


def trained(launcher, arguments, cwd):
    """What the command printed, which has to end well."""
    code, printed = run([*launcher, *arguments], cwd)
    assert code == 0, printed
    return printed


def assert_same(one, two, parts=("student", "fake_score", "ema"), tolerance=1e-4):
    """The last checkpoints in two folders of runs hold the same tensors."""
    for part in parts:
        first, second = (load_file(max(folder.glob("checkpoints/step-*")) / f"{part}.safetensors") for folder in (one, two))
        assert first.keys() == second.keys()
        for name in first:
            torch.testing.assert_close(
                first[name], second[name], rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
            )
