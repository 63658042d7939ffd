"""Trainers after some cycles, and their weights."""

import torch
from accelerate import Accelerator

from amd_plugin.host.training.trainer import Trainer


def weights(trainer):
    roles = {name: part.state_dict() for name, part in trainer.state().items() if not name.startswith(("optimizer_", "memory"))}
    roles["ema"] = roles["ema"]["weights"]
    return {f"{role}.{name}": v.detach().clone() for role, state in roles.items() for name, v in state.items()}


def trained(tiny, plugins, *overrides, cycles=3, **options):
    trainer = Trainer(tiny(*overrides, **options), plugins, Accelerator(cpu=True))
    for _ in range(cycles):
        trainer.cycle()
    return trainer


def assert_close(one, two, tolerance):
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")
