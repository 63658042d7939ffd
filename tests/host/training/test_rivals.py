"""The rivals of AMD in the reference host: two cycles each, DMD at strength 0, and the signals that only they need."""

import pytest
import torch
from accelerate import Accelerator

from amd_plugin.default_plugins.amd import RIVALS
from amd_plugin.errors import InputError
from amd_plugin.host.training.extra_signals import with_extra_signals
from amd_plugin.host.training.trainer import Trainer
from tests.helpers.training import assert_close, trained, weights

STEPS = "model.student_steps=3"
# Every rival: the option of its strength, and the strength at which it is DMD.
OFF = {
    "policy_gradient": "policy_weight=0", "best_of_k": "best_of=1", "diffusion_nft": "nft_weight=0", "re_dmd": "reward_beta=0",
    "gndm": "group_share=0", "dp_dmd": "diversity_weight=0",
}  # fmt: skip


def test_every_rival_is_tried_here():
    assert OFF.keys() == RIVALS.keys()


@pytest.mark.parametrize("name", OFF)
def test_each_trains_and_is_dmd_at_strength_zero(tiny, plugins, name):
    plain = weights(trained(tiny, plugins, STEPS, objective="dmd", cycles=2))
    off = weights(trained(tiny, plugins, STEPS, f"objective.{OFF[name]}", objective=name, cycles=2))
    assert all(torch.equal(plain[key], off[key]) for key in plain)
    first = ("train.seed=1",) if name == "dp_dmd" else ()  # the anchor is of updates that exit at the first rung
    plain = weights(trained(tiny, plugins, STEPS, *first, objective="dmd", cycles=2)) if first else plain
    on = weights(trained(tiny, plugins, STEPS, *first, objective=name, cycles=2))
    assert all(torch.isfinite(value).all() for value in on.values())
    assert any(not torch.equal(plain[key], on[key]) for key in plain)


@pytest.mark.parametrize("name", ["policy_gradient", "diffusion_nft", "dp_dmd"])
def test_accumulation_changes_nothing(tiny, plugins, name):
    whole = weights(trained(tiny, plugins, STEPS, objective=name, cycles=2))
    parts = weights(trained(tiny, plugins, STEPS, "train.accumulation=4", objective=name, cycles=2))
    assert_close(whole, parts, 2e-4)


@pytest.mark.parametrize("name", OFF)
def test_digits_can_be_had_too(plugins, name):
    from amd_plugin.recipe.loading import load

    assert load("digits", plugins, ("model.student_steps=2",), name).objective is not None


@pytest.mark.parametrize(
    ("name", "overrides", "problem"),
    [
        ("policy_gradient", (), "model.student_steps: .*'policy_gradient' needs at least 2, got 1"),
        ("dp_dmd", (), "model.student_steps: .*'dp_dmd' needs at least 2, got 1"),
        ("policy_gradient", (STEPS, "model.transition=ode"), "model.transition: .*density"),
        ("policy_gradient", (STEPS, "train.rollout=data"), "train.rollout: .*own transitions"),
        ("gndm", ("train.group_size=1",), "train.group_size: .*at least 2"),
        ("dp_dmd", (STEPS, "objective.anchor_steps=40"), "objective.anchor_steps: must be at most teacher_steps, 30, got 40"),
    ],
)
def test_what_a_rival_cannot_be_trained_with_is_refused(tiny, name, overrides, problem):
    with pytest.raises(InputError, match=problem):
        tiny(*overrides, objective=name)


def test_a_student_of_one_step_can_be_anchored_if_it_is_matched_too(tiny, plugins):
    trained(tiny, plugins, "objective.match_first=true", objective="dp_dmd", cycles=1)


def turn(tiny, plugins, name, rung, *overrides):
    """A trainer, a student's batch that exits at `rung`, its samples with a graph, and its signals."""
    trainer = Trainer(tiny(STEPS, *overrides, objective=name), plugins, Accelerator(cpu=True))
    rows = slice(0, 16)
    batch = next(b for step in range(50) if (b := trainer.rollouts.batch(step, "student", 3)).exit_rung == rung)
    x0 = trainer.forward.rollout(batch, rows, grad=True).x0
    signals = trainer.forward.signals(x0, batch, rows, torch.full((16,), 0.5), torch.zeros(16))
    return trainer, batch, with_extra_signals(trainer.forward, signals, batch, rows)


def test_the_density_is_that_of_the_samplers_own_transitions(tiny, plugins):
    trainer, batch, signals = turn(tiny, plugins, "policy_gradient", 1)
    forward, rows = trainer.forward, slice(0, 16)
    predict = lambda x, t: forward.caller.call(trainer.student, x, t, forward.condition(batch.labels))  # noqa: E731
    noise = batch.normal("rung 0")
    first, second = forward.ladder.path(predict, noise, batch.generators("rung", rows), 1)
    x0 = forward.schedule.to_x0(predict(first, forward.ladder.timesteps[0].expand(16)), first, forward.ladder.level(0, 16))
    fresh = (second - forward.ladder.levels.alpha[1] * x0) / forward.ladder.levels.sigma[1]
    drawn = torch.stack([torch.randn(2, generator=draws) for draws in batch.generators("rung", rows)])
    torch.testing.assert_close(fresh, drawn, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(signals.log_density, -0.5 * drawn.square().mean(1), rtol=1e-3, atol=1e-3)
    signals.log_density.sum().backward()
    assert any(parameter.grad.any() for parameter in trainer.student.parameters())


def test_a_first_prediction_has_no_transition(tiny, plugins):
    _, _, signals = turn(tiny, plugins, "policy_gradient", 0)
    assert not signals.log_density.any() and not signals.log_density.requires_grad


def test_the_anchor_is_where_the_teachers_path_points(tiny, plugins):
    """With all steps taken, the path ends at a sample of the teacher, and the chord points to it."""
    whole = ("objective.anchor_steps=30", "objective.guidance_scale=1")
    trainer, batch, signals = turn(tiny, plugins, "dp_dmd", 0, *whole)
    from diffusers import FlowMatchEulerDiscreteScheduler

    from amd_plugin.schedule import sample

    condition = trainer.forward.condition(batch.labels)
    predict = lambda x, t: trainer.forward.caller.call(trainer.teacher, x, t, condition)  # noqa: E731
    scheduler = FlowMatchEulerDiscreteScheduler()
    with torch.no_grad():
        samples = sample(predict, scheduler, 30, batch.normal("rung 0"), None)
    torch.testing.assert_close(signals.anchor, samples, rtol=0.05, atol=0.05)
    assert not signals.anchor.requires_grad
    later = turn(tiny, plugins, "dp_dmd", 1)[2]
    assert later.anchor is None
