"""A cycle waits for the device once per update, for the norm of gradients, and once per scored batch, for its rewards.

A GPU stands idle while its host waits for a number. Here the device is simulated; where there is a GPU, CUDA is asked as well.
"""

import warnings

import pytest
import torch
from accelerate import Accelerator

from amd_plugin.host.training.trainer import Trainer
from tests.helpers.simulated_device import simulated_device

STEPS = ("model.student_steps=4", "train.fake_updates=3")


def waits_of_a_cycle(tiny, plugins, monkeypatch, *overrides, **options):
    with simulated_device(monkeypatch) as device:
        trainer = Trainer(tiny(*STEPS, *overrides, **options), plugins, Accelerator(cpu=True))
        trainer.cycle()
        device.waits.clear()
        trainer.cycle()
        return dict(device.waits)


@pytest.mark.parametrize("objective", ["dmd", "amd"])
@pytest.mark.parametrize("rollouts", ["fresh", "harvest"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_what_a_cycle_waits_for(tiny, plugins, monkeypatch, objective, rollouts, accumulation):
    overrides = (f"train.rollouts={rollouts}", f"train.accumulation={accumulation}", "objective.guidance_scale=2")
    waits = waits_of_a_cycle(tiny, plugins, monkeypatch, *overrides, objective=objective)
    scored = {"scoring.all_gather_scores: cpu": 4} if objective == "amd" else {}  # three turns and the student's, or four rungs
    assert waits == {"learner.update: cpu": 4, **scored}


@pytest.mark.parametrize(
    ("option", "more"),
    [
        ("objective.kl=0.5", {}),
        ("objective.guidance_window=[0, 0.8]", {}),
        ("objective.advantage_guidance=auto", {"contrast_statistics.finish_turn: cpu": 1}),
    ],
)
def test_what_an_option_waits_for(tiny, plugins, monkeypatch, option, more):
    waits = waits_of_a_cycle(tiny, plugins, monkeypatch, "objective.guidance_scale=2", option)
    assert waits == {"learner.update: cpu": 4, "scoring.all_gather_scores: cpu": 4, **more}


def test_the_simulation_sees_what_it_is_there_for(monkeypatch):
    with simulated_device(monkeypatch) as device:
        x = torch.randn(4).to(Accelerator(cpu=True).device)
        y = (2 * x).exp()
        assert y.device == x.device and device.waits == {}
        float(y.sum()), y[y > 0], (y + 1).cpu().tolist()
        with pytest.raises(RuntimeError, match="same device"):
            y + torch.ones(4)
    assert device.waits == {"elsewhere: float": 1, "elsewhere: getitem": 1, "elsewhere: cpu": 1}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="asks CUDA what waits")
def test_cuda_says_the_same(tiny, plugins):
    trainer = Trainer(tiny(*STEPS, "distributed.device=auto"), plugins, Accelerator())
    trainer.cycle()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            trainer.cycle()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    places = {str(warning.filename) for warning in caught if "synchronizing" in str(warning.message)}
    assert all(place.endswith(("learner.py", "scoring.py")) for place in places), places
