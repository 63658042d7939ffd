"""Forwards per role in one cycle, counted by hooks on the networks while the real trainer runs.

    python benchmarks/forwards.py [--cycles 32]

A cycle is one student update and its fake-score updates. "rows" counts samples, in units of the batch: one call with and
without condition at once is one call of two. Counted on the embedded DiT, whose calls are those of every family.
"""

import argparse
import tempfile
from collections import Counter

from accelerate import Accelerator

import amd_plugin
from amd_plugin import recipe
from amd_plugin.host.training.trainer import Trainer

SMALL = (
    "model.width=16", "model.heads=2", "model.teacher.steps=1", "model.teacher.batch_size=8", "train.batch_size=16",
    "train.group_size=4", "train.fake_updates=3", "train.trackers=[]",
)  # fmt: skip


def count(objective: str, steps: int, scale: float, cycles: int) -> dict[str, float]:
    """Mean calls per cycle by role and whether they carry a graph, and rows per batch."""
    import torch

    plugins = amd_plugin.get_plugin_manager()
    overrides = (*SMALL, f"model.student_steps={steps}", f"objective.guidance_scale={scale}")
    trainer = Trainer(recipe.load("digits", plugins, overrides, objective), plugins, Accelerator(cpu=True))
    calls: Counter[str] = Counter()
    for name in ("student", "fake_score", "teacher"):

        def record(module, inputs, name=name):
            calls[f"{name}, {'graph' if torch.is_grad_enabled() else 'no graph'}"] += 1
            calls["rows"] += len(inputs[0]) / trainer.train.batch_size

        getattr(trainer, name).network.register_forward_pre_hook(record)
    for _ in range(cycles):
        trainer.cycle()
    return {name: number / cycles for name, number in calls.items()}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cycles", type=int, default=32, help="to average the random exit rung over")
    cycles = parser.parse_args().cycles
    columns = ("student, no graph", "student, graph", "fake_score, no graph", "fake_score, graph", "teacher, no graph", "rows")
    print("fake updates per student update: 3\n")
    print("| objective | steps | w | " + " | ".join(columns) + " |\n|" + "---|" * (len(columns) + 3))
    for objective in ("dmd", "amd"):
        for steps in (1, 2, 4):
            for scale in (1.0, 2.0):
                found = count(objective, steps, scale, cycles)
                cells = " | ".join(f"{found.get(column, 0):.2f}" for column in columns)
                print(f"| {objective} | {steps} | {scale:g} | {cells} |", flush=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as cache:
        import os

        os.environ.setdefault("AMD_PLUGIN_CACHE", cache)
        main()
