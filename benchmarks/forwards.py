"""Forward passes per role in one cycle, counted by hooks on the networks while the real trainer runs.

    python benchmarks/forwards.py [--cycles 32]

A cycle is one student update and its fake-score updates. "rows" counts samples, in units of the batch: a batched call with and
without condition counts as one call and two rows. The network is the embedded DiT; every family makes the same calls.
"""

import argparse
import os
import tempfile
from collections import defaultdict

import torch
from accelerate import Accelerator
from torch import Tensor, nn

import amd_plugin
from amd_plugin import recipe
from amd_plugin.host.training.trainer import Trainer

SMALL = (
    "model.width=16", "model.heads=2", "model.teacher.steps=1", "model.teacher.batch_size=8", "train.batch_size=16",
    "train.group_size=4", "train.fake_updates=3", "train.trackers=[]",
)  # fmt: skip


def count(objective: str, steps: int, scale: float, cycles: int) -> dict[str, float]:
    """Mean calls per cycle, by role and by whether a graph is recorded, and mean rows per batch."""
    plugins = amd_plugin.get_plugin_manager()
    overrides = (*SMALL, f"model.student_steps={steps}", f"objective.guidance_scale={scale}")
    trainer = Trainer(recipe.load("digits", plugins, overrides, objective), plugins, Accelerator(cpu=True))
    calls: dict[str, float] = defaultdict(float)
    for name in ("student", "fake_score", "teacher"):

        def record(module: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
            calls[f"{name}, {'graph' if torch.is_grad_enabled() else 'no graph'}"] += 1
            calls["rows"] += len(inputs[0]) / trainer.train.batch_size

        getattr(trainer, name).network.register_forward_pre_hook(record)
    for _ in range(cycles):
        trainer.cycle()
    return {name: number / cycles for name, number in calls.items()}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cycles", type=int, default=32, help="number of cycles, which average over the random exit rung")
    cycles = parser.parse_args().cycles
    columns = ("student, no graph", "student, graph", "fake_score, no graph", "fake_score, graph", "teacher, no graph", "rows")
    print("fake updates per student update: 3\n")
    print("| objective | steps | w | " + " | ".join(columns) + " |\n|" + "---|" * (len(columns) + 3))
    for objective in ("dmd", "amd"):
        for steps in (1, 2, 4):
            for scale in (1.0, 2.0):
                calls = count(objective, steps, scale, cycles)
                cells = " | ".join(f"{calls.get(column, 0):.2f}" for column in columns)
                print(f"| {objective} | {steps} | {scale:g} | {cells} |", flush=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as cache:
        os.environ.setdefault("AMD_PLUGIN_CACHE", cache)
        main()
