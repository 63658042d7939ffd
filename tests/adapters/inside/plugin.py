"""What the tests of several hosts use: a third party's plugin, and what an adapter overrides without comparing it."""

import re
from pathlib import Path

import torch

import amd_plugin.adapters
from amd_plugin import get_plugin_manager, hookimpl

ADAPTERS = Path(amd_plugin.adapters.__file__).parent


class Levels:
    """A sampler into [low, high] that keeps the order of the host's draw, and records its calls.

    Attributes:
        moved: (role, step, number of levels, number of advantages or None) of each call.
        steps: (step, max_steps, whether there were metrics) of each call of the schedule.
    """

    def __init__(self, low=0.4, high=0.5, factor=0.5):
        self.low, self.high, self.factor, self.moved, self.steps, self.random = low, high, factor, [], [], []
        self.plugins = get_plugin_manager()
        self.plugins.register(self, "levels")

    @hookimpl
    def distill_sigma_sampler(self, options):
        self.options = options
        return self.move

    def move(self, sigma, *, role, advantage, step, generator):
        assert ((sigma >= 0) & (sigma <= 1)).all()
        self.moved.append((role, step, len(sigma), None if advantage is None else len(advantage)))
        self.random.append(torch.rand((), generator=generator).item())
        return self.low + (self.high - self.low) * sigma

    @hookimpl
    def distill_strength_schedule(self, step, max_steps, metrics):
        self.steps.append((step, max_steps, "objective/zone_share" in metrics))
        return self.factor


def unchecked(host, *pairs):
    """Methods of a host's class that our class overrides, and whose parameters nobody compares before a run.

    Args:
        host: name of the adapter.
        pairs: our class, and the host's that it extends.
    """
    compared = set(re.findall(r'"(\w+)": ', (ADAPTERS / f"{host}_host.py").read_text()))
    return {
        f"{ours.__name__}.{name}"
        for ours, theirs in pairs
        for base in ours.__mro__
        if base.__module__.startswith("amd_plugin.")
        for name, value in vars(base).items()
        if callable(value)
        and name in dir(theirs)
        and name not in compared
        and (name == "__init__" or not name.startswith("__"))
    }
