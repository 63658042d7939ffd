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
    for step in range(count * len(trainer.ladder)):
        trainer.step = step
        batch = trainer._batch("student", 0)
        found.setdefault(batch.exit_rung, batch)
    assert found.keys() == set(range(len(trainer.ladder)))
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
        below = 0.0 if last else trainer.ladder.timesteps[rung + 1].item()
        for role in ("student", "fake_score", "discriminator"):
            sigma = trainer._sigma(batch, role, None, None)
            timestep = trainer.schedule.timestep(sigma)
            assert (timestep > below).all() and (sigma <= high).all() and (sigma >= low).all()
            # The draws reach down to there: the lowest of 64 is within a tenth of the interval.
            floor = low if last else trainer.floors[rung]
            assert sigma.min() < floor + 0.1 * (high - floor)
    assert trainer.schedule.timestep(torch.tensor(trainer.floors[:-1])).tolist() == pytest.approx(
        [t + (0 if trainer.schedule.is_flow else 1) for t in trainer.ladder.timesteps[1:].tolist()], rel=1e-5
    )


def test_a_window_of_ones_own_stays_where_it_is_higher_and_guidance_keeps_its(tiny, plugins):
    how = ("model.student_steps=2", "train.sigma=[0.6, 0.9]", "objective.match_sigma=[0.1, 0.7]")
    guide = ("objective.guidance_sigma=[0.05, 0.2]", "objective.guidance_scale=2.0", "train.batch_size=64")
    trainer = trainer_of(plugins, tiny(*how, *guide, ON, objective="dmd"))
    for rung, batch in batches(trainer).items():
        fake = trainer._sigma(batch, "fake_score", None, None)
        assert fake.min() >= 0.6 and fake.max() <= 0.9
        student = trainer._sigma(batch, "student", trainer.objective.match_sigma, None)
        assert student.min() >= (0.5 if rung == 0 else 0.1) and student.max() <= 0.7
        guidance = trainer._sigma(batch, "guide", trainer.objective.guidance_sigma, None)
        assert guidance.min() >= 0.05 and guidance.max() <= 0.2
    metrics = trainer.cycle()
    assert all(metrics[name].isfinite() for name in ("loss/student", "loss/fake_score", "grad_norm/student"))


def test_off_draws_what_it_always_drew(tiny, plugins):
    trainer = trainer_of(plugins, tiny("model.student_steps=3", objective="dmd"))
    for batch in batches(trainer).values():
        assert torch.equal(trainer._sigma(batch, "student", None, None), batch.uniform("sigma student", trainer.train.sigma))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("train.sigma=[0.02, 0.7]",), "the first of 4 steps above 0.75 of the schedule, and train.sigma ends at 0.7"),
        (("objective.match_sigma=[0.1, 0.75]",), "and objective.match_sigma ends at 0.75"),
    ],
)
def test_a_window_that_leaves_the_first_rung_nothing_is_refused(tiny, plugins, overrides, said):
    with pytest.raises(InputError, match=said):
        trainer_of(plugins, tiny("model.student_steps=4", ON, *overrides, objective="dmd"))
    trainer_of(plugins, tiny("model.student_steps=4", *overrides, objective="dmd"))
