"""Rungs are read off the exported scheduler, and its own sampler visits exactly those."""

import pytest
import torch
from diffusers import (
    CMStochasticIterativeScheduler,
    DDIMScheduler,
    DDPMScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
    SCMScheduler,
    UniPCMultistepScheduler,
)

from amd_plugin.errors import OptionError
from amd_plugin.schedule import Ladder, NoiseSchedule, few_step_scheduler, sample


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_training_visits_what_sampling_visits_after_save_and_load(steps, tmp_path):
    few_step_scheduler(steps).save_pretrained(tmp_path)
    exported = FlowMatchEulerDiscreteScheduler.from_pretrained(tmp_path)
    visited = []

    def network(x, t):
        visited.append(t[0].item())
        return x

    sample(network, exported, steps, torch.randn(2, 3), torch.Generator().manual_seed(0))
    rungs = Ladder(few_step_scheduler(steps), steps).timesteps
    assert visited == rungs.tolist()
    torch.testing.assert_close(rungs / 1000, torch.arange(steps, 0, -1) / steps, rtol=1e-5, atol=1e-5)


def test_the_samplers_transitions_are_the_rollouts(tmp_path):
    """Predict x0, re-noise to the next rung: what the scheduler does is what training simulates."""
    scheduler = few_step_scheduler(2)
    schedule, ladder = NoiseSchedule(scheduler), Ladder(scheduler, 2)
    noise, output = torch.randn(2, 3), torch.randn(2, 3)
    got = sample(lambda x, t: output, scheduler, 2, noise, torch.Generator().manual_seed(5))
    x0 = schedule.to_x0(output, noise, ladder.level(0, 2))
    fresh = torch.randn(2, 3, generator=torch.Generator().manual_seed(5))
    x = ladder.level(1, 2).add_noise(x0, fresh)
    torch.testing.assert_close(got, schedule.to_x0(output, x, ladder.level(1, 2)))
    halfway = ladder.descend(lambda x, t: output, noise, torch.Generator().manual_seed(5), 1)
    torch.testing.assert_close(halfway, x)


SDXL = EulerDiscreteScheduler(
    beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="leading", steps_offset=1
)
WAN = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
SIT = FlowMatchEulerDiscreteScheduler()


@pytest.mark.parametrize(
    ("teacher", "options", "kind", "rungs"),
    [
        (SDXL, {}, LCMScheduler, [999, 759, 499, 259]),
        (SDXL, {"transition": "ode"}, DDIMScheduler, [999, 749, 499, 249]),
        (WAN, {"shift": 8.0}, FlowMatchEulerDiscreteScheduler, [1000, 960, 888.889, 727.273]),
        (WAN, {}, FlowMatchEulerDiscreteScheduler, [1000, 900, 750, 500]),
        (WAN, {"transition": "ode"}, FlowMatchEulerDiscreteScheduler, [1000, 900, 750, 500]),
        (SIT, {"transition": "ode", "scales_input": True}, UniPCMultistepScheduler, [999, 750, 500, 250]),
    ],
)
def test_rungs_of_every_kind_of_teacher(teacher, options, kind, rungs, tmp_path):
    """And they survive being saved and loaded, with the levels at which training puts its samples."""
    made = few_step_scheduler(4, teacher, **options)
    made.save_pretrained(tmp_path)
    loaded = kind.from_pretrained(tmp_path)
    before, after = Ladder(made, 4), Ladder(loaded, 4)
    assert before.timesteps.tolist() == after.timesteps.tolist()
    torch.testing.assert_close(after.timesteps.float(), torch.tensor(rungs, dtype=torch.float), rtol=1e-4, atol=1)
    for mine, theirs in zip(before.levels, after.levels, strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("teacher", [SDXL, WAN])
@pytest.mark.parametrize("transition", ["sde", "ode"])
def test_ladders_agree_with_the_schedule_networks_are_trained_on(teacher, transition):
    """The level a rung's sample has is the one the network was taught to expect at that timestep."""
    scheduler = few_step_scheduler(4, teacher, transition=transition)
    ladder, schedule = Ladder(scheduler, 4), NoiseSchedule(scheduler)
    expected = schedule.level(ladder.timesteps)
    for mine, theirs in zip(ladder.levels, expected, strict=True):
        torch.testing.assert_close(mine.float(), theirs.float(), rtol=1e-4, atol=1e-4)


def test_ode_transitions_keep_the_noise():
    """With a network that knows the truth, following its noise leaves the sample on one straight path."""
    x0, noise = torch.randn(2, 3), torch.randn(2, 3)
    scheduler = few_step_scheduler(4, WAN, transition="ode")
    got = Ladder(scheduler, 4).descend(lambda x, t: noise - x0, noise, torch.Generator(), 3)
    torch.testing.assert_close(got, 0.5 * x0 + 0.5 * noise)


@pytest.mark.parametrize(
    ("steps", "teacher", "options", "said"),
    [
        (1001, SDXL, {}, "student_steps: must be at most that, the teacher's scheduler has 1000 training timesteps, got 1001"),
        (11, DDPMScheduler(num_train_timesteps=10), {}, "student_steps.*10 training timesteps, got 11"),
        (4, SDXL, {"shift": 3.0}, "shift: is of flow-matching schedules, and the teacher's is EulerDiscreteScheduler"),
        (4, SIT, {"scales_input": True}, "transition: .*choose 'ode'"),
    ],
)
def test_rungs_a_teacher_does_not_have(steps, teacher, options, said):
    with pytest.raises(OptionError, match=said):
        few_step_scheduler(steps, teacher, **options)


def test_variance_preserving_levels():
    scheduler = DDPMScheduler()
    schedule = NoiseSchedule(scheduler)
    x0, noise, t = torch.randn(3, 2), torch.randn(3, 2), torch.tensor([0, 500, 999])
    torch.testing.assert_close(schedule.level(t).add_noise(x0, noise), scheduler.add_noise(x0, noise, t))
    assert schedule.prediction_type == "epsilon"
    assert schedule.timestep(torch.tensor([0.0, 0.5, 1.0])).tolist() == [0, 500, 999]


def test_more_rungs_than_distinct_timesteps():
    with pytest.raises(OptionError, match="distinct"):
        Ladder(FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True, num_train_timesteps=1), 3)


@pytest.mark.parametrize(
    "teacher",
    [EDMEulerScheduler(), EDMDPMSolverMultistepScheduler(), CMStochasticIterativeScheduler(), SCMScheduler(),
     EulerDiscreteScheduler(timestep_type="continuous", prediction_type="v_prediction", sigma_min=0.002, sigma_max=120.0)],
    ids=lambda teacher: type(teacher).__name__,
)  # fmt: skip
@pytest.mark.parametrize("transition", ["sde", "ode"])
def test_schedules_without_betas_are_refused_instead_of_replaced(teacher, transition):
    """As Playground v2.5's, CosXL's and consistency models': defaults would make another schedule of them in silence."""
    with pytest.raises(OptionError, match=r"path: the schedule of its .* is not one of betas"):
        few_step_scheduler(4, teacher, transition=transition, scales_input=True)


def test_pure_noise_and_a_prediction_of_it_are_refused():
    """alpha = 0 at the first step: the clean picture is 0 / 0. With v it is -v."""
    message = r"path: its DDIMScheduler begins at pure noise \(rescale_betas_zero_snr\)"
    with pytest.raises(OptionError, match=message):
        few_step_scheduler(4, DDIMScheduler(rescale_betas_zero_snr=True))
    for transition in ("sde", "ode"):
        teacher = DDIMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction", timestep_spacing="trailing")
        scheduler = few_step_scheduler(4, teacher, transition=transition)
        made = sample(lambda x, t: x, scheduler, 4, torch.randn(2, 3), torch.Generator().manual_seed(0))
        assert made.isfinite().all()


def test_a_shift_that_depends_on_the_size_has_to_be_chosen():
    teacher = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    with pytest.raises(OptionError, match=r"shift: .*use_dynamic_shifting"):
        few_step_scheduler(4, teacher)
    assert Ladder(few_step_scheduler(4, teacher, shift=3.0), 4).timesteps[1] == pytest.approx(900)
