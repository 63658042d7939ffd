"""Time of a cycle with a sharded teacher and without, and the size of its all-gathers.

    torchrun --nproc_per_node=2 benchmarks/sharding_cost.py [--width 128] [--depth 6] [--cycles 5]

A cycle is one update of the student and one of the fake score, on a small Wan with the recipe of the large one. Conditional and
unconditional prediction are one call of the teacher ("batched"), or two ("separate"), which gathers all parameters twice.
"""

import argparse
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, broadcast_object_list
from torch import Tensor

from amd_plugin import get_plugin_manager, recipe
from amd_plugin.host.training import forward as host
from amd_plugin.models.embedded.tiny import tiny_wan
from amd_plugin.models.family import Caller, Condition

SMALL = (
    "model.pixels=[32, 32]", "model.frames=5", "model.dtype=fp32", "model.text_length=8", "rewards=[]", "train.max_steps=99",
    "train.batch_size=8", "train.group_size=2", "train.accumulation=1", "train.fake_updates=1", "train.trackers=[]",
    "distributed.mixed_precision='no'", "data.per_prompt=2", "evaluate.samples=10",
)  # fmt: skip


@contextmanager
def separate() -> Iterator[None]:
    """Replaces the batched guidance call by two calls of the teacher."""

    def two_calls(caller: Caller, network: Any, x: Tensor, t: Tensor, *conditions: Condition) -> list[Tensor]:
        return [caller.call(network, x, t, condition) for condition in conditions]

    with patch.object(host, "pair", two_calls):
        yield


@contextmanager
def counted(gathered: list[int]) -> Iterator[None]:
    """Appends the number of elements of every all-gather of DeepSpeed to `gathered`."""
    from deepspeed.comm.torch import TorchBackend

    original = TorchBackend.all_gather_into_tensor

    def count(self: Any, output_tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        gathered.append(output_tensor.numel())
        return original(self, output_tensor, *args, **kwargs)

    TorchBackend.all_gather_into_tensor = count
    try:
        yield
    finally:
        TorchBackend.all_gather_into_tensor = original


def main() -> None:
    """Measures all variants, and prints the table."""
    logging.disable(logging.WARNING)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=128, help="width of the network")
    parser.add_argument("--depth", type=int, default=6, help="layers of the network")
    parser.add_argument("--cycles", type=int, default=5, help="number of timed cycles")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cpu = not torch.cuda.is_available()
    alone = int(os.environ.get("WORLD_SIZE", 1)) == 1
    accelerator = Accelerator(cpu=cpu, kwargs_handlers=[InitProcessGroupKwargs(backend="gloo")] if cpu and not alone else [])
    with tempfile.TemporaryDirectory() as folder:
        folder = broadcast_object_list([folder])[0]
        if accelerator.is_main_process:
            pipeline: Any = tiny_wan(["a", "b"], width=options.width, depth=options.depth, heads=8)
            pipeline.save_pretrained(Path(folder) / "wan")
            (Path(folder) / "prompts.txt").write_text("a b\nb a\n")
        accelerator.wait_for_everyone()
        rows = []
        for teacher, calls in (("none", "batched"), ("zero3", "batched"), ("zero3", "separate")):
            rows.append((teacher, calls, *measure(folder, teacher, calls, options.cycles, accelerator)))
        if accelerator.is_main_process:
            report(rows, accelerator.num_processes)
        accelerator.wait_for_everyone()


def measure(folder: str, teacher: str, calls: str, cycles: int, accelerator: Accelerator) -> tuple[float, float, float, int]:
    """(median seconds of a cycle, all-gathers per cycle, gathered elements per cycle, elements of the teacher)."""
    settings = (f"model.path={folder}/wan", f"data.source={folder}/prompts.txt", f"distributed.teacher={teacher}", *SMALL)
    plugins = get_plugin_manager()
    trainer = host.Trainer(recipe.load("wan21_1_3b_4step", plugins, settings, "dmd"), plugins, accelerator)
    times: list[float] = []
    gathered: list[int] = []
    with counted(gathered), separate() if calls == "separate" else counted([]):
        for cycle in range(cycles + 2):
            accelerator.wait_for_everyone()
            if cycle == 2:  # DeepSpeed has recorded the order of the layers by then
                gathered.clear()
            start = time.perf_counter()
            trainer.cycle()
            accelerator.wait_for_everyone()
            times.append(time.perf_counter() - start)
    whole = sum(getattr(p, "ds_numel", p.numel()) for p in trainer.teacher.network.parameters())
    return sorted(times[2:])[cycles // 2], len(gathered) / cycles, sum(gathered) / cycles, whole


def report(rows: list[tuple[str, str, float, float, float, int]], processes: int) -> None:
    """Prints the table."""
    print(f"\n{processes} processes, teacher of {rows[0][-1] / 1e6:.1f} M parameters\n")
    print("| teacher | guidance | time of a cycle / unsharded | all-gathers per cycle | gathered per cycle / teacher |")
    print("| --- | --- | --- | --- | --- |")
    for teacher, calls, seconds, number, elements, whole in rows:
        print(f"| {teacher} | {calls} | {seconds / rows[0][2]:.2f} | {number:.0f} | {elements / whole:.2f} |")


if __name__ == "__main__":
    main()
