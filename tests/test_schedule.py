"""Rungs are read off the exported scheduler, and its own sampler visits exactly those."""

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler, LCMScheduler, UniPCMultistepScheduler

from amd_plugin.errors import InputError
from amd_plugin.schedule import NoiseSchedule, few_step_scheduler, sample


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_training_visits_what_sampling_visits_after_save_and_load(steps, tmp_path):
    few_step_scheduler(steps).save_pretrained(tmp_path)
    exported = FlowMatchEulerDiscreteScheduler.from_pretrained(tmp_path)
    visited = []

    def network(x, t):
        visited.append(t[0].item())
        return x

    sample(network, exported, steps, torch.randn(2, 3), torch.Generator().manual_seed(0))
    rungs = NoiseSchedule(few_step_scheduler(steps)).rungs(steps)
    assert visited == rungs.tolist()
    torch.testing.assert_close(rungs / 1000, torch.arange(steps, 0, -1) / steps, rtol=1e-5, atol=1e-5)


def test_the_samplers_transitions_are_the_rollouts(tmp_path):
    """Predict x0, re-noise to the next rung: what the scheduler does is what training simulates."""
    scheduler = few_step_scheduler(2)
    schedule = NoiseSchedule(scheduler)
    rungs = schedule.rungs(2)
    noise, output = torch.randn(2, 3), torch.randn(2, 3)
    got = sample(lambda x, t: output, scheduler, 2, noise, torch.Generator().manual_seed(5))
    x0 = schedule.to_x0(output, noise, rungs[:1].expand(2))
    fresh = torch.randn(2, 3, generator=torch.Generator().manual_seed(5))
    x = schedule.level(rungs[1:].expand(2)).add_noise(x0, fresh)
    torch.testing.assert_close(got, schedule.to_x0(output, x, rungs[1:].expand(2)))


def test_rungs_of_other_schedulers():
    assert NoiseSchedule(LCMScheduler()).rungs(4).tolist() == [999, 759, 499, 259]
    wan = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=8.0)
    assert NoiseSchedule(wan).rungs(4).tolist() == [999, 960, 889, 728]


def test_variance_preserving_levels():
    scheduler = DDPMScheduler()
    schedule = NoiseSchedule(scheduler)
    x0, noise, t = torch.randn(3, 2), torch.randn(3, 2), torch.tensor([0, 500, 999])
    torch.testing.assert_close(schedule.level(t).add_noise(x0, noise), scheduler.add_noise(x0, noise, t))
    assert schedule.prediction_type == "epsilon"
    assert schedule.timestep(torch.tensor([0.0, 0.5, 1.0])).tolist() == [0, 500, 999]


def test_more_rungs_than_timesteps():
    with pytest.raises(InputError, match="distinct"):
        NoiseSchedule(FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True, num_train_timesteps=1)).rungs(3)
