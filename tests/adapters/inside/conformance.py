"""ModelOpt's adapter for the conformance tests, written as a third party would."""

import json

import torch
from modelopt.torch.fastgen import DMDPipeline
from test_modelopt import pipeline, train

from amd_plugin.adapters.modelopt import AMDPipeline
from amd_plugin.testing.adapter import Trace


class Run:
    def __init__(self, pipe):
        self.pipe, self.step, self.random = pipe, 0, None

    def train(self, steps):
        losses, _, self.random = train(self.pipe, steps, self.step, self.random)
        self.step += steps
        roles = (self.pipe.student, self.pipe.fake_score)
        return Trace(losses, [p.detach().clone() for role in roles for p in role.parameters()], self.random)

    def state(self):
        roles = [{k: v.clone() for k, v in role.state_dict().items()} for role in (self.pipe.student, self.pipe.fake_score)]
        return roles, json.dumps(self.pipe.objective.state_dict()), self.step, self.random

    def restore(self, state):
        roles, objective, self.step, self.random = state
        self.pipe.student.load_state_dict(roles[0])
        self.pipe.fake_score.load_state_dict(roles[1])
        self.pipe.objective.load_state_dict(json.loads(objective))


class ModelOpt:
    def stock(self):
        return Run(pipeline(DMDPipeline))

    def amd(self, options, reward):
        parts = {name: options[name] for name in ("strength", "sharpening") if name in options}
        return Run(pipeline(AMDPipeline, reward=reward, amd={k: v for k, v in options.items() if k not in parts}, **parts))


class Broken(ModelOpt):
    """An adapter that loses its state and draws once too often."""

    def amd(self, options, reward):
        run = super().amd(options, reward)
        run.restore = lambda state: None
        run.pipe.sample_timesteps = lambda *args, **kwargs: (
            torch.rand(1),
            DMDPipeline.sample_timesteps(run.pipe, *args, **kwargs),
        )[1]
        return run
