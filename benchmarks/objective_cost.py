"""What AMD's objective costs over DMD's, beside the networks of a student update, on latents of Wan2.1's true size.

    .venv/bin/python benchmarks/objective_cost.py [--batch 2] [--device cpu]

Times the objective's whole part of a student turn: advantages of the rewards, direction, normaliser, loss, statistics, metrics,
and the gradient with respect to the samples. The networks' part is counted, not run, as it takes hours on a CPU: floating-point
operations of WanTransformer3DModel with the configuration of Wan2.1-1.3B, for the student with gradients, the teacher twice and
the fake score once, divided by the rate of a matrix product of that network's width, measured in the same run. A network that
reaches less than that rate makes the objective's share smaller.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from amd_plugin import AMDObjective, DMDObjective
from amd_plugin.maths.signals import Signals

LATENTS = (16, 21, 60, 104)  # 81 frames of 480 x 832
TOKENS, WIDTH, HIDDEN = 21 * 30 * 52, 1536, 8960
CONFIG = {"num_attention_heads": 12, "attention_head_dim": 128, "ffn_dim": HIDDEN, "num_layers": 30}
FORWARDS = 3 + 2 + 1  # the student's backward pass counts twice its forward one; teacher with and without condition; fake score


def operations() -> float:
    """Floating-point operations of one forward pass of one sample."""
    from diffusers import WanTransformer3DModel

    with torch.device("meta"):
        network = WanTransformer3DModel(**CONFIG)
        inputs = torch.zeros(1, *LATENTS), torch.zeros(1), torch.zeros(1, 512, 4096)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(*inputs)
    return float(counter.get_total_flops())


def seconds(call: Callable[[], Any], device: str, repeats: int) -> float:
    """The median time of `call`, after one that does not count."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        call()
        if device != "cpu":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def turn(objective: Any, batch: int, device: str) -> Callable[[], None]:
    """The objective's part of a student turn."""
    draws = torch.Generator(device).manual_seed(0)
    x0, cond, uncond, fake = (torch.randn(batch, *LATENTS, generator=draws, device=device) for _ in range(4))
    reward, groups = torch.arange(batch) % 2.0, torch.arange(batch) // 2
    sigma, rung = torch.linspace(0.1, 0.9, batch, device=device), torch.zeros(batch, dtype=torch.long)
    x0.requires_grad_()

    def run() -> None:
        advantage = objective.advantage(reward, groups).to(device) if objective.needs.reward else None
        fields = {"groups": groups.to(device), "batch_advantage": advantage, "rung": rung}
        objective.student_loss(Signals(x0, cond, uncond, fake, sigma, advantage, **fields)).loss.backward()
        x0.grad = None

    return run


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=2, help="number of samples, even: two of each prompt")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=9)
    given = parser.parse_args()
    if given.device == "cpu":
        torch.set_num_threads(1)
    a, b = torch.randn(2048, WIDTH, device=given.device), torch.randn(WIDTH, HIDDEN, device=given.device)
    if given.device != "cpu":
        a, b = a.bfloat16(), b.bfloat16()
    rate = 2 * a.numel() * HIDDEN / seconds(lambda: a @ b, given.device, given.repeats)
    networks = given.batch * FORWARDS * operations() / rate
    arms = {"dmd": DMDObjective(5.0), "amd": AMDObjective(5.0), "amd, strength 0.5": AMDObjective(5.0, strength=0.5)}
    times = {name: seconds(turn(arm, given.batch, given.device), given.device, given.repeats) for name, arm in arms.items()}
    print(f"networks of a student update: {networks:.3g} s at the {rate / 1e9:.0f} GFLOP/s of a matrix product\n")
    print("| objective | seconds | over dmd | of a student update |\n| --- | --- | --- | --- |")
    for name, value in times.items():
        more = value - times["dmd"]
        print(f"| {name} | {value:.4f} | {more:+.4f} | {more / networks:+.4%} |")


if __name__ == "__main__":
    main()
