"""What one call for teacher and fake score could save over two: the time of 3 B rows in one call, beside 2 B and B rows in two.

    .venv/bin/python benchmarks/batched_calls.py [--device cpu]

One diffusers WanTransformer3DModel without gradients, as if rows of both roles went through the same weights. That is the most
that batching can save on a shared base, whose rows would need different adapters on top. Calls take turns in random order.
"""

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch


def seconds(call: Callable[[], Any], device: str) -> float:
    """The time of `call`."""
    start = time.perf_counter()
    call()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def forwards(network: Any, calls: Sequence[Sequence[torch.Tensor]]) -> None:
    """Calls `network` with each of the inputs."""
    for inputs in calls:
        network(*inputs)


def main() -> None:
    """Prints the ratios of time, by batch size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=15)
    given = parser.parse_args()
    from diffusers import WanTransformer3DModel

    from amd_plugin.models.embedded.tiny import tiny_wan

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        pipeline: Any = tiny_wan(["a", "fox"], width=192, depth=4, heads=4, patch_size=2)
        pipeline.save_pretrained(folder)
        network = WanTransformer3DModel.from_pretrained(Path(folder, "transformer")).to(given.device)
    print("| batch | two calls, seconds | one call, seconds | one over two |\n| --- | --- | --- | --- |")
    for batch in (1, 2, 8):
        rows = [
            (torch.randn(n, network.config.in_channels, 5, 16, 16), torch.ones(n), torch.randn(n, 8, network.config.text_dim))
            for n in (batch, 2 * batch, 3 * batch)
        ]
        fake, pair, all_three = ([part.to(given.device) for part in parts] for parts in rows)
        calls = {"two": (fake, pair), "one": (all_three,)}
        times: dict[str, list[float]] = {"two": [], "one": []}
        with torch.no_grad():
            for repeat in range(given.repeats + 1):
                for name in random.sample(list(calls), 2):
                    taken = seconds(partial(forwards, network, calls[name]), given.device)
                    if repeat:
                        times[name].append(taken)
        two, one = (statistics.median(times[name]) for name in ("two", "one"))
        print(f"| {batch} | {two:.4f} | {one:.4f} | {one / two:.2f} |")


if __name__ == "__main__":
    main()
