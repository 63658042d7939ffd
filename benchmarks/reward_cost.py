"""What rewards cost: decoding and scoring as a share of a training cycle, in this process and in a pool; memory with offload.

    OMP_NUM_THREADS=1 python benchmarks/reward_cost.py

A cycle is one student update with its fake-score updates. All variants of a recipe take turns within one run, on one machine;
numbers are medians over cycles, and ratios to plain DMD's cycle, which decodes and scores nothing. "waits" is the share of a
cycle that the training process spends in decoding, in scoring, and in waiting for scores. The tasks' own reward takes no time
worth hiding, so there is one beside it that sleeps, as a model on another device or a server would have this process do.
"""

import argparse
import statistics
import time

import torch
from accelerate import Accelerator
from torch import nn

from amd_plugin import get_plugin_manager, hookimpl, recipe
from amd_plugin.config import RewardConfig
from amd_plugin.host.training.trainer import Trainer
from amd_plugin.rewards.reward_set import RewardSet


def remote(seconds: float):
    """Takes its time without taking this machine's."""
    return lambda media, prompts: (time.sleep(seconds), media.flatten(1).mean(1))[1]


class Large(nn.Module):
    """A gibibyte of weights."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4096, 4096, bias=False) for _ in range(16))

    def forward(self, media, prompts):
        return self.layers[0](media.flatten(1)[:, :1].expand(-1, 4096)).mean(1)


class Plugin:
    @hookimpl
    def distill_rewards(self):
        return {"remote": remote, "large": Large}


class Timed:
    """A trainer whose decoding and scoring is clocked."""

    def __init__(self, name, objective, rewards, plugins):
        # A teacher costs as much time trained as untrained.
        overrides = ["train.trackers=[]", "model.teacher.steps=20", *([f"rewards={rewards}"] if rewards else [])]
        self.trainer = Trainer(recipe.load(name, plugins, overrides, objective), plugins, Accelerator(cpu=True))
        self.cycles, self.waits, self._spent = [], [], 0.0
        if self.trainer.scoring is not None:
            for part, methods in ((self.trainer.scoring, ("submit",)), (self.trainer.rewards, ("collect",))):
                for method in methods:
                    setattr(part, method, self._clocked(getattr(part, method)))

    def _clocked(self, function):
        def clocked(*args):
            start = time.perf_counter()
            try:
                return function(*args)
            finally:
                self._spent += time.perf_counter() - start

        return clocked

    def cycle(self) -> None:
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
    """Device memory between two calls of a reward of one gibibyte."""
    if not torch.cuda.is_available():
        return "memory with offload: no GPU here, and main memory is where offloaded weights go; nothing to measure"
    plugins, device, held = get_plugin_manager(), torch.device("cuda"), {}
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=["modes2d", "digits", "moving_digits"])
    parser.add_argument("--cycles", type=int, default=30)
    options = parser.parse_args()
    lines = ["| recipe | run | cycle, dmd = 1 | waits |", "|---|---|---|---|"]
    for name in options.recipes:
        lines += measure(name, options.cycles)
    print("\n".join([*lines, memory()]))


if __name__ == "__main__":
    main()
