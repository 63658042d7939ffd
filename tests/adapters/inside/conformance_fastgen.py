"""FastGen's adapter for the conformance tests."""

import contextlib
import copy

import conftest  # noqa: F401  # declares torchvision's operators before anything imports it
import torch
from fastgen.methods import DMD2Model
from test_fastgen import model as build

from amd_plugin.adapters.fastgen import AMDModel
from amd_plugin.testing.adapter import ReorderedDraws, Trace

ROWS = torch.nn.functional.one_hot(torch.tensor([3, 3, 7, 7]), 10).float()


class Run:
    def __init__(self, model, order=None):
        self.model, self.order, self.step = model, order, 0
        self.rows = ROWS if order is None else ROWS[order]
        self.random = torch.Generator().manual_seed(1).get_state()

    def train(self, steps):
        torch.set_rng_state(self.random)
        losses = []
        with contextlib.nullcontext() if self.order is None else ReorderedDraws(self.order):
            for step in range(self.step, self.step + steps):
                data = {"real": torch.randn(4, 3, 8, 8), "condition": self.rows, "neg_condition": torch.zeros(4, 10)}
                self.model.optimizers_zero_grad(step)
                loss, _ = self.model.single_train_step(data, step)
                loss["total_loss"].backward()
                self.model.optimizers_schedulers_step(step)
                losses.append(loss["total_loss"].detach())
        self.step, self.random = self.step + steps, torch.get_rng_state()
        roles = (self.model.net, self.model.fake_score)
        return Trace(losses, [p.detach().clone() for role in roles for p in role.parameters()], self.random)

    def parts(self):
        kinds = (self.model.model_dict, self.model.optimizer_dict, self.model.scheduler_dict)
        return [part for kind in kinds for _, part in sorted(kind.items())]

    def state(self):
        saved = [copy.deepcopy(part.state_dict()) for part in self.parts()]
        return saved, self.model.objective.state_dict(), self.step, self.random

    def restore(self, state):
        saved, objective, self.step, self.random = state
        for part, values in zip(self.parts(), saved, strict=True):
            part.load_state_dict(values)
        self.model.objective.load_state_dict(objective)


class FastGen:
    def stock(self):
        return Run(build(DMD2Model))

    def amd(self, options, reward, order=None):
        return Run(build(AMDModel, amd={**options, "reward": reward}), order)
