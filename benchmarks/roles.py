"""What sharing one base saves: bytes held, peak memory and time per cycle, on tiny pipelines of two classes.

    python benchmarks/roles.py [--cycles 5]

Three copies (full fine-tuning of student and fake score), two with adapters of their own, and one base shared by all roles, in
turn on the same pipeline and batch. Bytes are counted, by tensor; peak memory is the largest sum of live tensors that torch's
profiler sees during a cycle, beside what is held between cycles. Times are of this machine and mean something as ratios only.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch
from accelerate import Accelerator
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
    """(recipe, settings) of a tiny pipeline of `family`, saved to `folder`."""
    if family == "SDXL":
        tiny_sdxl(WORDS, size=16, width=64, depth=2).save_pretrained(folder)
        return "sdxl_4step", ()
    tiny_wan(WORDS, width=192, depth=4, heads=4, patch_size=4).save_pretrained(folder)
    return "wan21_1_3b_4step", ("model.pixels=[16, 16]", "model.frames=5", "model.text_length=8")


def trainer(name: str, settings: tuple[str, ...], folder: Path) -> Trainer:
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


def held(made: Trainer) -> dict[str, int]:
    """Bytes by what they are for; a parameter shared by roles counts once."""
    networks = {id(role.network): role.network for role in (made.student, made.fake_score, made.teacher)}
    parameters = {id(p): p for network in networks.values() for p in network.parameters()}
    optimizers = [made.learners[name].optimizer.state_dict()["state"] for name in ("student", "fake_score")]
    moments = [v for state in optimizers for values in state.values() for v in values.values() if isinstance(v, torch.Tensor)]
    trained = [p for role in (made.student, made.fake_score) for p in role.parameters()]
    size = lambda tensors: sum(t.numel() * t.element_size() for t in tensors)  # noqa: E731
    return {
        "weights": size(parameters.values()), "gradients": size(trained), "moments": size(moments),
        "average": size(made.ema.state_dict()["weights"].values()),
    }  # fmt: skip


def peak_of_cycle(made: Trainer) -> int:
    """Largest growth of live tensor memory within a cycle, in bytes."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        made.cycle()
    live = peak = 0
    for event in recorded.profiler.kineto_results.events():
        if event.name() == "[memory]" and event.device_type() == torch.autograd.DeviceType.CPU:
            live += event.nbytes()
            peak = max(peak, live)
    return peak


def main() -> None:
    """Prints a table per family."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cycles", type=int, default=5, help="to time, after one that is not")
    cycles = parser.parse_args().cycles
    torch.set_num_threads(1)
    for family in ("SDXL", "Wan"):
        columns = (
            "weights | gradients | moments | average | held, MB | ratio | peak of a cycle, MB | ratio | time of a cycle, ratio"
        )
        print(f"\n{family} class\n\n| roles | {columns} |\n|" + "---|" * 10)
        with tempfile.TemporaryDirectory() as folder:
            name, size = pipeline(family, Path(folder))
            made = {mode: trainer(name, (*size, *how), Path(folder)) for mode, how in MODES.items()}
            for each in made.values():
                each.cycle()
            times: dict[str, list[float]] = {mode: [] for mode in made}
            for _ in range(cycles):  # in turn, so that a machine that slows down slows all of them down
                for mode, each in made.items():
                    start = time.perf_counter()
                    each.cycle()
                    times[mode].append(time.perf_counter() - start)
            base_bytes = base_peak = base_time = 0.0
            for mode, each in made.items():
                parts, peak, spent = held(each), peak_of_cycle(each), statistics.median(times[mode])
                total = sum(parts.values())
                base_bytes, base_peak, base_time = base_bytes or total, base_peak or peak, base_time or spent
                cells = " | ".join(f"{part / 1e6:.2f}" for part in parts.values())
                print(f"| {mode} | {cells} | {total / 1e6:.2f} | {total / base_bytes:.2f} | {peak / 1e6:.2f} "
                      f"| {peak / base_peak:.2f} | {spent / base_time:.2f} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as cache:
        os.environ.setdefault("AMD_PLUGIN_CACHE", cache)
        main()
