"""Samples of a rung are re-noised above the level of the next one, with every schedule, in every update that matches them."""

import pytest
import torch
from accelerate import Accelerator

from amd_plugin.errors import InputError
from amd_plugin.host.training.trainer import Trainer

ON = "train.sub_interval=true"


def trainer_of(plugins, recipe):
    return Trainer(recipe, plugins, Accelerator(cpu=True))


def batches(trainer, count=12):
    """One batch of every rung, by rung."""
    found = {}
    for step in range(count * len(trainer.forward.ladder)):
        batch = trainer.rollouts.batch(step, "student", 0)
        found.setdefault(batch.exit_rung, batch)
    assert found.keys() == set(range(len(trainer.forward.ladder)))
    return found


SCHEDULES = {
    "shifted flow": ("wan", "model.shift=8"), "the teacher's shift": ("sd3",), "no shift": ("sit",),
    "noise, sde": ("sdxl",), "noise, ode": ("sdxl", "model.transition=ode"), "noise, evenly spaced": ("dit",),
}  # fmt: skip


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("steps", [2, 4])
def test_levels_lie_between_the_next_rung_and_the_end(schedule, steps, piped, plugins):
    family, *how = SCHEDULES[schedule]
    recipe = piped(family, *how, f"model.student_steps={steps}", ON, "train.batch_size=64", objective="dmd")
    trainer = trainer_of(plugins, recipe)
    low, high = trainer.train.sigma
    for rung, batch in batches(trainer).items():
        last = rung == steps - 1
        below = 0.0 if last else trainer.forward.ladder.timesteps[rung + 1].item()
        for role in ("student", "fake_score", "discriminator"):
            sigma = trainer.forward.noise_levels(batch, role)
            timestep = trainer.forward.schedule.timestep(sigma)
            assert (timestep > below).all() and (sigma <= high).all() and (sigma >= low).all()
            # The draws reach down to there: the lowest of 64 is within a tenth of the interval.
            floor = low if last else trainer.forward.noise_levels.floors[rung]
            assert sigma.min() < floor + 0.1 * (high - floor)
    assert trainer.forward.schedule.timestep(torch.tensor(trainer.forward.noise_levels.floors[:-1])).tolist() == pytest.approx(
        [t + (0 if trainer.forward.schedule.is_flow else 1) for t in trainer.forward.ladder.timesteps[1:].tolist()], rel=1e-5
    )


def test_a_window_of_ones_own_stays_where_it_is_higher_and_guidance_keeps_its(tiny, plugins):
    how = ("model.student_steps=2", "train.sigma=[0.6, 0.9]", "objective.match_sigma=[0.1, 0.7]")
    guide = ("objective.guidance_sigma=[0.05, 0.2]", "objective.guidance_scale=2.0", "train.batch_size=64")
    trainer = trainer_of(plugins, tiny(*how, *guide, ON, objective="decoupled_dmd"))
    for rung, batch in batches(trainer).items():
        fake = trainer.forward.noise_levels(batch, "fake_score")
        assert fake.min() >= 0.6 and fake.max() <= 0.9
        student = trainer.forward.noise_levels(batch, "student", trainer.objective.needs.match_range)
        assert student.min() >= (0.5 if rung == 0 else 0.1) and student.max() <= 0.7
        guidance = trainer.forward.noise_levels(batch, "guide", trainer.objective.needs.guidance_range)
        assert guidance.min() >= 0.05 and guidance.max() <= 0.2
    metrics = trainer.cycle()
    assert all(metrics[name].isfinite() for name in ("loss/student", "loss/fake_score", "grad_norm/student"))


def test_off_draws_what_it_always_drew(tiny, plugins):
    trainer = trainer_of(plugins, tiny("model.student_steps=3", objective="dmd"))
    for batch in batches(trainer).values():
        assert torch.equal(trainer.forward.noise_levels(batch, "student"), batch.uniform("sigma student", trainer.train.sigma))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.sigma=[0.02, 0.7]", "the first of 4 steps above 0.75 of the schedule, and train.sigma ends at 0.7"),
        ("objective.match_sigma=[0.1, 0.75]", "and objective.match_sigma ends at 0.75"),
    ],
)
def test_a_window_that_leaves_the_first_rung_nothing_is_refused(tiny, plugins, override, said):
    with pytest.raises(InputError, match=said):
        trainer_of(plugins, tiny("model.student_steps=4", ON, override, objective="decoupled_dmd"))
    trainer_of(plugins, tiny("model.student_steps=4", override, objective="decoupled_dmd"))
