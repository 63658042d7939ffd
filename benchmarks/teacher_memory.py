"""Memory per process of a sharded teacher, and of a student as a sharded engine: between calls, and while loading.

    python benchmarks/teacher_memory.py [--width 512] [--depth 24]

Real processes on CPUs. "kept" is the size of the parameters between calls. "peak" is the growth of resident memory while the
network is loaded. "streamed" loads as `distributed.teacher: zero3` does, "whole first" as `from_pretrained` and DeepSpeed do.
"student" loads as `distributed.trained: zero3` does, in fp32: shares of weights and master weights, without moments.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def resident(field: str) -> int:
    """Resident memory in bytes: ``VmRSS`` for now, ``VmHWM`` for the peak since its last reset."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def measure(folder: str, mode: str, out: str) -> None:
    """In one process of several: loads the network in `folder`, and writes its memory to `out`."""
    import torch
    from accelerate import Accelerator
    from accelerate.utils import InitProcessGroupKwargs

    from amd_plugin import get_plugin_manager
    from amd_plugin.config import TrainConfig
    from amd_plugin.models.pretrained import Pretrained
    from amd_plugin.models.roles import Role
    from amd_plugin.sharding.engine import EngineSettings, engine_for
    from amd_plugin.sharding.frozen import held, shard
    from amd_plugin.sharding.setup import deepspeed_for

    alone = int(os.environ.get("WORLD_SIZE", 1)) == 1
    accelerator = Accelerator(cpu=True, kwargs_handlers=[] if alone else [InitProcessGroupKwargs(backend="gloo")])
    pretrained = Pretrained(folder)
    family = pretrained.family(get_plugin_manager().families())
    deepspeed_for(accelerator)
    # Modules that are imported on first use must not count as memory of the teacher.
    shard(torch.nn.Linear(4, 4), accelerator)
    with torch.device("meta"):
        pretrained.empty_network(family)
    accelerator.wait_for_everyone()
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    network, weights = pretrained.outlined_network(family, torch.float32)
    kept = 0
    if mode == "student":
        role = Role(network.requires_grad_(True))
        train = TrainConfig(max_steps=1, batch_size=1, student_lr=1e-5, fake_lr=1e-5)
        settings = EngineSettings(accelerator, train, "zero3", weights)
        engine_for(role, partial(torch.optim.Adam, lr=1e-5, fused=True), settings)
        kept = 4 * sum(masters.numel() for masters in role.master_weights())
    elif mode == "whole first":
        network = shard(pretrained.network(family, torch.float32), accelerator)
    else:
        shard(network, accelerator, read=weights)
    memory = {"kept": kept + 4 * held(network), "peak": resident("VmHWM") - before}
    (Path(out) / f"{accelerator.process_index}.json").write_text(json.dumps(memory))


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=512, help="width of the network")
    parser.add_argument("--depth", type=int, default=24, help="layers of the network")
    parser.add_argument("--processes", type=int, nargs="*", default=[1, 2, 4], help="numbers of processes")
    options = parser.parse_args()
    from amd_plugin.models.embedded.tiny import tiny_wan

    with tempfile.TemporaryDirectory() as folder:
        pipeline: Any = tiny_wan(["a"], width=options.width, depth=options.depth, heads=8)
        sizes = [4 * p.numel() for p in pipeline.transformer.parameters()]
        pipeline.save_pretrained(Path(folder) / "wan")
        whole, mib = sum(sizes), 2**20
        largest = max(sizes) / mib
        print(f"\nA Wan of {whole / mib:.0f} MiB, its largest parameter of {largest:.0f} MiB; MiB per process\n")
        print("| processes | loaded as | kept | kept x processes / whole | peak: first, others |")
        print("| --- | --- | --- | --- | --- |")
        for count, mode in itertools.product(options.processes, ("streamed", "whole first", "student")):
            ranks = launch(count, Path(folder), mode)
            kept = max(rank["kept"] for rank in ranks)
            peaks = ", ".join(f"{peak / mib:.0f}" for peak in first_and_others(ranks))
            print(f"| {count} | {mode} | {kept / mib:.1f} | {kept * count / whole:.3f} | {peaks} |", flush=True)


def first_and_others(ranks: list[dict[str, int]]) -> list[int]:
    """Peak of the first process, which reads the files, and the highest peak of the others."""
    first, *others = (rank["peak"] for rank in ranks)
    return [first, max(others)] if others else [first]


def launch(count: int, folder: Path, mode: str) -> list[dict[str, int]]:
    """The memory of each of `count` processes."""
    out = Path(tempfile.mkdtemp(dir=folder))
    rendezvous = ["--rdzv_backend=c10d", "--rdzv_endpoint=localhost:0"]
    launcher = ["-m", "torch.distributed.run", f"--nproc_per_node={count}", *rendezvous]
    command = [sys.executable, *(launcher if count > 1 else []), __file__, "--measure", folder / "wan", mode, out]
    # Freed blocks of more than 64 kB go back to the system; by default glibc would keep the holes between the remaining shares.
    malloc = {"MALLOC_MMAP_THRESHOLD_": "65536"}
    environment = {**os.environ, **malloc, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run([str(part) for part in command], env=environment, check=True, timeout=600, stderr=subprocess.DEVNULL)
    return [json.loads((out / f"{rank}.json").read_text()) for rank in range(count)]


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(*sys.argv[2:])
    else:
        main()
