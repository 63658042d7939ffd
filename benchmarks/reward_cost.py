"""Cost of rewards: decoding and scoring as a share of a training cycle, in this process and in a pool; memory with offload.

    OMP_NUM_THREADS=1 python benchmarks/reward_cost.py

A cycle is one student update with its fake-score updates. All variants of a recipe take turns within one run, on one machine.
Numbers are medians over cycles, and ratios to a cycle of plain DMD, which decodes and scores nothing. "waits" is the share of a
cycle that the training process spends on decoding, on scoring, and on waiting for scores. The tasks' own reward takes hardly
any time. So a second reward sleeps, which stands for a model on another device or on a server.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from amd_plugin import get_plugin_manager, hookimpl, recipe
from amd_plugin.config import RewardConfig
from amd_plugin.host.training.trainer import Trainer
from amd_plugin.plugins import PluginManager
from amd_plugin.rewards.reward_set import RewardSet


def remote(seconds: float) -> Callable[[Tensor, list[str]], Tensor]:
    """A reward that takes `seconds` without using this machine's processor."""

    def reward(media: Tensor, prompts: list[str]) -> Tensor:
        time.sleep(seconds)
        return media.flatten(1).mean(1)

    return reward


class Large(nn.Module):
    """A reward with one gibibyte of weights."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4096, 4096, bias=False) for _ in range(16))

    def forward(self, media: Tensor, prompts: list[str]) -> Tensor:
        scores: Tensor = self.layers[0](media.flatten(1)[:, :1].expand(-1, 4096)).mean(1)
        return scores


class Plugin:
    """The two rewards above."""

    @hookimpl
    def distill_rewards(self) -> dict[str, Any]:
        return {"remote": remote, "large": Large}


class Timed:
    """A trainer with timed cycles, decoding and scoring.

    Attributes:
        cycles: seconds per cycle.
        waits: share of each cycle spent on decoding, scoring and waiting for scores.
    """

    def __init__(self, name: str, objective: str, rewards: str | None, plugins: PluginManager):
        # A short training of the teacher is enough: its calls take the same time.
        overrides = ["train.trackers=[]", "model.teacher.steps=20", *([f"rewards={rewards}"] if rewards else [])]
        self.trainer = Trainer(recipe.load(name, plugins, overrides, objective), plugins, Accelerator(cpu=True))
        self.cycles: list[float] = []
        self.waits: list[float] = []
        self._spent = 0.0
        if self.trainer.scoring is not None:
            for part, method in ((self.trainer.scoring, "submit"), (self.trainer.rewards, "collect")):
                setattr(part, method, self._timed(getattr(part, method)))

    def _timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args)
            finally:
                self._spent += time.perf_counter() - start

        return timed

    def cycle(self) -> None:
        """Runs and times one cycle."""
        self._spent, start = 0.0, time.perf_counter()
        self.trainer.cycle()
        self.cycles.append(time.perf_counter() - start)
        self.waits.append(self._spent / self.cycles[-1])


def measure(name: str, cycles: int) -> list[str]:
    """The lines of one recipe's table."""
    plugins = get_plugin_manager()
    plugins.register(Plugin())
    plain = Timed(name, "dmd", None, plugins)
    for _ in range(3 + cycles):
        plain.cycle()
    update = statistics.median(plain.cycles[3:]) / (plain.trainer.train.fake_updates + 1)
    slow = f"{{name: remote, seconds: {update:.4f}"
    variants = {
        "dmd, nothing decoded or scored": plain,
        "amd, the task's reward": Timed(name, "amd", "[{name: classifier}]", plugins),
        "amd, the task's reward, pool: 1": Timed(name, "amd", "[{name: classifier, pool: 1}]", plugins),
        "amd, a reward as slow as an update": Timed(name, "amd", f"[{slow}}}]", plugins),
        "amd, the same, pool: 1": Timed(name, "amd", f"[{slow}, pool: 1}}]", plugins),
        "amd, the same, pool: 2": Timed(name, "amd", f"[{slow}, pool: 2}}]", plugins),
    }
    plain.cycles, plain.waits = [], []
    for _ in range(3 + cycles):
        for timed in variants.values():
            timed.cycle()
    lines, base = [], statistics.median(plain.cycles[3:])
    for title, timed in variants.items():
        cycle, waits = statistics.median(timed.cycles[3:]), statistics.median(timed.waits[3:])
        lines.append(f"| {name} | {title} | {cycle / base:.2f} | {waits:.0%} |")
        if timed.trainer.rewards is not None:
            timed.trainer.rewards.close()
    return lines


def memory() -> str:
    """A line on device memory between two calls of a reward of one gibibyte."""
    if not torch.cuda.is_available():
        return "memory with offload: not measured, since there is no GPU to offload weights from"
    plugins, device, held = get_plugin_manager(), torch.device("cuda"), dict[bool, float]()
    plugins.register(Plugin())
    for offload in (False, True):
        rewards = RewardSet([RewardConfig(name="large", offload=offload)], plugins, None, None, device)
        for network in rewards.scorers["large"].networks:
            network.to(device)
        rewards(torch.zeros(4, 2, device=device), [""] * 4)
        held[offload] = torch.cuda.memory_allocated() / 2**30
        del rewards, network
    return f"device memory between calls, reward of 1 GiB: {held[False]:.2f} GiB, with offload {held[True]:.2f} GiB"


def main() -> None:
    """Measures all recipes, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=["modes2d", "digits", "moving_digits"], help="names of recipes")
    parser.add_argument("--cycles", type=int, default=30, help="number of timed cycles")
    options = parser.parse_args()
    lines = ["| recipe | run | cycle, dmd = 1 | waits |", "|---|---|---|---|"]
    for name in options.recipes:
        lines += measure(name, options.cycles)
    print("\n".join([*lines, memory()]))


if __name__ == "__main__":
    main()
