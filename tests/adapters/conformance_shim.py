"""The argparse shim and examples/custom_trainer.py for the conformance tests: a host that parses its arguments.

`Offset` is the same host with guidance written ``cond + w (cond - uncond)``, as in some older trainers: 1 is added to it for the objective.
"""

import argparse
import contextlib
import copy
import json
import sys
from pathlib import Path

import torch

from amd_plugin.adapters import shim
from amd_plugin.hookspecs import Needs
from amd_plugin.maths.losses import matching_loss_per_sample
from amd_plugin.objectives.dmd import LossOutput
from amd_plugin.testing.adapter import ReorderedDraws, Trace

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
import custom_trainer

GUIDANCE = 2.5
DIGITS = torch.tensor([3, 3, 7, 7])


def teacher():
    torch.manual_seed(0)
    return custom_trainer.Denoiser(width=8).requires_grad_(False)


class Run:
    def __init__(self, objective, reward, order=None):
        self.order, self.random = order, torch.Generator().manual_seed(1).get_state()
        digits = DIGITS if order is None else DIGITS[order]
        self.trainer = custom_trainer.Trainer(objective, teacher(), reward, lambda step: digits, steps=10)

    def train(self, steps):
        """One turn of each role is an update."""
        torch.set_rng_state(self.random)
        losses = []
        with contextlib.nullcontext() if self.order is None else ReorderedDraws(self.order):
            for _ in range(steps):
                losses += [self.trainer.fake_score_turn(0), self.trainer.student_turn()]
        self.random = torch.get_rng_state()
        roles = (self.trainer.student, self.trainer.fake)
        return Trace(losses, [p.detach().clone() for role in roles for p in role.parameters()], self.random)

    def state(self):
        state = copy.deepcopy(self.trainer.state())
        return {**state, "objective": json.dumps(state["objective"])}, self.random

    def restore(self, state):
        state, self.random = state
        self.trainer.load({**state, "objective": json.loads(state["objective"])})


def objective(name, options, scale):
    """From the words that a user would type."""
    parser = argparse.ArgumentParser()
    shim.add_arguments(parser)
    words = [word for key, value in options.items() for word in (f"--{name}.{key}", json.dumps(value).strip('"'))]
    try:
        return shim.make_objective(
            parser.parse_args(["--objective", name, *words]), offers=custom_trainer.GIVES, guidance_scale=scale
        )
    except SystemExit as error:  # argparse knows no such option
        from amd_plugin.errors import InputError

        raise InputError(f"{words}") from error


class Shim:
    def stock(self):
        return Run(objective("dmd", {}, GUIDANCE), None)

    def amd(self, options, reward, order=None):
        return Run(objective("amd", options, GUIDANCE), reward, order)


class Stock:
    """A host's own loss, written out: DMD2's, with guidance in the offset form."""

    needs, shared_sums = Needs(), ()

    def __init__(self, scale):
        self.scale, self.dmd = scale, objective("dmd", {}, 1.0)

    def student_loss(self, signals):
        guided = signals.real_cond + self.scale * (signals.real_cond - signals.real_uncond)
        size = (signals.x0 - guided).abs().mean(1, keepdim=True).detach()
        each = matching_loss_per_sample(signals.x0, ((guided - signals.fake) / size).detach())
        return LossOutput(each.mean(), each.detach(), {})

    def fake_score_loss(self, prediction, target, weight=None):
        return self.dmd.fake_score_loss(prediction, target)


class Offset(Shim):
    def stock(self):
        return Run(Stock(GUIDANCE - 1), None)

    def amd(self, options, reward, order=None):
        amd = objective("amd", options, GUIDANCE - 1 + 1)
        # Without a reward the host's own code runs.
        return Run(amd if amd.needs.reward else Stock(GUIDANCE - 1), reward, order)
