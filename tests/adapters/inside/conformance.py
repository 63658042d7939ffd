"""ModelOpt's adapter for the conformance tests, written as a third party would, and adapters that are wrong."""

import contextlib

import torch
from modelopt.torch.fastgen import DMDPipeline
from test_modelopt import batch, pipeline, train

from amd_plugin.adapters.bridge import HostBridge
from amd_plugin.adapters.modelopt import AMDPipeline
from amd_plugin.testing.adapter import ReorderedDraws, Trace


class Run:
    def __init__(self, pipe, order=None):
        self.pipe, self.order, self.step, self.random = pipe, order, 0, None

    def train(self, steps):
        data = {step: batch(step) for step in range(self.step, self.step + steps)}  # before any draw is reordered
        if self.order is not None:
            data = {step: tuple(part[self.order] for part in parts) for step, parts in data.items()}
        with contextlib.nullcontext() if self.order is None else ReorderedDraws(self.order):
            losses, _, self.random = train(self.pipe, steps, self.step, self.random, data.__getitem__)
        self.step += steps
        roles = (self.pipe.student, self.pipe.fake_score)
        return Trace(losses, [p.detach().clone() for role in roles for p in role.parameters()], self.random)

    def state(self):
        roles = [{k: v.clone() for k, v in role.state_dict().items()} for role in (self.pipe.student, self.pipe.fake_score)]
        return roles, self.pipe.state_dict(), self.step, self.random

    def restore(self, state):
        roles, amd_state, self.step, self.random = state
        self.pipe.student.load_state_dict(roles[0])
        self.pipe.fake_score.load_state_dict(roles[1])
        self.pipe.load_state_dict(amd_state)


class ModelOpt:
    def stock(self):
        return Run(pipeline(DMDPipeline))

    def amd(self, options, reward, order=None):
        parts = {name: options[name] for name in ("strength", "sharpening") if name in options}
        rest = {k: v for k, v in options.items() if k not in parts}
        return Run(pipeline(AMDPipeline, reward=reward, amd=rest, **parts), order)


class Broken(ModelOpt):
    """An adapter that loses its state and draws once too often, and whose `amd` takes no order."""

    def amd(self, options, reward):
        run = super().amd(options, reward)
        run.restore = lambda state: None
        run.pipe.sample_timesteps = lambda *args, **kwargs: (
            torch.rand(1),
            AMDPipeline.sample_timesteps(run.pipe, *args, **kwargs),
        )[1]
        return run


class WrongGuidance(ModelOpt):
    """An adapter that wrongly reads the host's guidance scale in the offset form ``cond + w (cond - uncond)``."""

    def amd(self, options, reward, order=None):
        run = super().amd(options, reward, order)
        loss, objective = run.pipe.objective.student_loss, run.pipe.objective

        def off_by_one(signals):
            objective.guidance_scale += 1
            return loss(signals)

        objective.student_loss = off_by_one
        return run


class WrongNormaliser(ModelOpt):
    """An adapter with FastVideo's normaliser in ModelOpt."""

    def amd(self, options, reward, order=None):
        return super().amd({"normalizer": "global", **options}, reward, order)


class FirstRowBridge(HostBridge):
    def advantages(self, *args, **kwargs):
        values = super().advantages(*args, **kwargs)
        return values[:1].expand_as(values)

    def weights(self, sigma=None):
        values = super().weights(sigma)
        return values[:1].expand_as(values)


class FirstRow(ModelOpt):
    """An adapter whose samples all get the advantage of the first, as one trainer does."""

    def amd(self, options, reward, order=None):
        run = super().amd(options, reward, order)
        run.pipe.bridge.__class__ = FirstRowBridge
        return run
