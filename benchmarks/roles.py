"""Savings of a shared base: memory between cycles, peak memory and time per cycle, on tiny pipelines of two families.

    python benchmarks/roles.py [--cycles 5]

The modes are three copies (full fine-tuning of student and fake score), three copies with adapters of their own, and one base
shared by all roles. They take turns on the same pipeline and batch. Memory between cycles is counted by tensor. Peak memory is
the largest growth of live tensors during a cycle, by torch's profiler. Times are useful as ratios only.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

import amd_plugin
from amd_plugin import recipe
from amd_plugin.host.training.trainer import Trainer
from amd_plugin.models.embedded.tiny import tiny_sdxl, tiny_wan

WORDS = ["a", "red", "fox", "blue", "boat"]
MODES = {
    "three copies": ("model.roles=separate",),
    "own adapters": ("model.roles=separate", "model.student=lora", "model.fake_score=lora"),
    "shared base": ("model.roles=shared_base",),
}


def pipeline(family: str, folder: Path) -> tuple[str, tuple[str, ...]]:
    """Saves a tiny pipeline of `family` to `folder`, and returns (recipe, settings) for it."""
    tiny: Any
    if family == "SDXL":
        tiny = tiny_sdxl(WORDS, size=16, width=64, depth=2)
        tiny.save_pretrained(folder)
        return "sdxl_4step", ()
    tiny = tiny_wan(WORDS, width=192, depth=4, heads=4, patch_size=4)
    tiny.save_pretrained(folder)
    return "wan21_1_3b_4step", ("model.pixels=[16, 16]", "model.frames=5", "model.text_length=8")


def make_trainer(name: str, settings: tuple[str, ...], folder: Path) -> Trainer:
    """A trainer on the pipeline in `folder`."""
    plugins = amd_plugin.get_plugin_manager()
    prompts = folder / "prompts.txt"
    prompts.write_text("a red fox\na blue boat\n")
    common = (
        f"model.path={folder}", "model.dtype=fp32", f"data.source={prompts}", "rewards=[{name: random}]",
        "model.lora={rank: 4, target_modules: [to_q, to_k, to_v]}", "train.batch_size=8", "train.group_size=4",
        "train.accumulation=1", "train.fake_updates=2", "train.trackers=[]", "train.gradient_checkpointing=false",
        "evaluate.samples=10", "distributed.mixed_precision='no'",
    )  # fmt: skip
    return Trainer(recipe.load(name, plugins, (*common, *settings)), plugins, Accelerator(cpu=True))


def held(trainer: Trainer) -> dict[str, int]:
    """Purpose -> bytes between cycles; a parameter that roles share counts once."""
    networks = {id(role.network): role.network for role in (trainer.student, trainer.fake_score, trainer.teacher)}
    parameters = {id(p): p for network in networks.values() for p in network.parameters()}
    optimizers = [trainer.learners[name].optimizer.state_dict()["state"] for name in ("student", "fake_score")]
    moments = [v for state in optimizers for values in state.values() for v in values.values() if isinstance(v, torch.Tensor)]
    trained = [p for role in (trainer.student, trainer.fake_score) for p in role.parameters()]
    return {
        "weights": size(parameters.values()), "gradients": size(trained), "moments": size(moments),
        "average": size(trainer.ema.state_dict()["weights"].values()),
    }  # fmt: skip


def size(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of `tensors`."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def peak_of_cycle(trainer: Trainer) -> int:
    """Largest growth of live tensor memory within a cycle, in bytes."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        trainer.cycle()
    live = peak = 0
    for event in recorded.profiler.kineto_results.events():
        if event.name() == "[memory]" and event.device_type() == DeviceType.CPU:
            live += event.nbytes()
            peak = max(peak, live)
    return peak


def main() -> None:
    """Prints a table per family."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cycles", type=int, default=5, help="number of timed cycles, after one untimed")
    cycles = parser.parse_args().cycles
    torch.set_num_threads(1)
    for family in ("SDXL", "Wan"):
        columns = (
            "weights | gradients | moments | EMA | held, MB | ratio | peak of a cycle, MB | ratio | time of a cycle, ratio"
        )
        print(f"\n{family} class\n\n| roles | {columns} |\n|" + "---|" * 10)
        with tempfile.TemporaryDirectory() as folder:
            name, settings = pipeline(family, Path(folder))
            trainers = {mode: make_trainer(name, (*settings, *roles), Path(folder)) for mode, roles in MODES.items()}
            for trainer in trainers.values():
                trainer.cycle()
            times: dict[str, list[float]] = {mode: [] for mode in trainers}
            for _ in range(cycles):  # in turn, so that a slow phase of the machine affects all modes
                for mode, trainer in trainers.items():
                    start = time.perf_counter()
                    trainer.cycle()
                    times[mode].append(time.perf_counter() - start)
            base_bytes = base_peak = base_time = 0.0
            for mode, trainer in trainers.items():
                parts, peak, spent = held(trainer), peak_of_cycle(trainer), statistics.median(times[mode])
                total = sum(parts.values())
                base_bytes, base_peak, base_time = base_bytes or total, base_peak or peak, base_time or spent
                cells = " | ".join(f"{part / 1e6:.2f}" for part in parts.values())
                print(f"| {mode} | {cells} | {total / 1e6:.2f} | {total / base_bytes:.2f} | {peak / 1e6:.2f} "
                      f"| {peak / base_peak:.2f} | {spent / base_time:.2f} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as cache:
        os.environ.setdefault("AMD_PLUGIN_CACHE", cache)
        main()
