"""Converting predictions: every type, every kind of schedule."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from amd_plugin.maths.prediction import NoiseLevel, edm, flow, to_x0, training_target, variance_preserving

TYPES = ["epsilon", "v_prediction", "flow_prediction", "sample"]


def levels(batch, seed):
    draws = torch.Generator().manual_seed(seed)
    sigma = 0.02 + 0.96 * torch.rand(batch, generator=draws)
    cumulative = torch.linspace(0.999, 0.01, 100)
    return {
        "variance preserving": variance_preserving(cumulative, torch.randint(100, (batch,), generator=draws)),
        "edm": edm(20 * sigma),
        "flow": flow(sigma),
    }


@given(st.integers(1, 5), st.lists(st.integers(1, 4), max_size=3).map(tuple), st.sampled_from(TYPES), st.integers(0, 999))
def test_a_perfect_network_gives_back_clean_data(batch, shape, kind, seed):
    draws = torch.Generator().manual_seed(seed)
    x0, noise = (torch.randn(batch, *shape, generator=draws) for _ in range(2))
    for level in levels(batch, seed).values():
        x_t = level.add_noise(x0, noise)
        torch.testing.assert_close(to_x0(kind, training_target(kind, x0, noise, level), x_t, level), x0, rtol=1e-3, atol=1e-3)


def test_v_agrees_with_diffusers():
    from diffusers import DDIMScheduler, EulerDiscreteScheduler

    draws = torch.Generator().manual_seed(0)
    sample, output = torch.randn(1, 3, generator=draws), torch.randn(1, 3, generator=draws)
    ddim = DDIMScheduler(prediction_type="v_prediction", clip_sample=False)
    ddim.set_timesteps(10)
    t = ddim.timesteps[3]
    level = variance_preserving(ddim.alphas_cumprod, t[None])
    theirs = ddim.step(output, t, sample).pred_original_sample
    torch.testing.assert_close(to_x0("v_prediction", output, sample, level), theirs)

    euler = EulerDiscreteScheduler(prediction_type="v_prediction")
    euler.set_timesteps(10)
    sigma = euler.sigmas[3]
    euler.scale_model_input(sample, euler.timesteps[3])
    theirs = euler.step(output, euler.timesteps[3], sample).pred_original_sample
    torch.testing.assert_close(to_x0("v_prediction", output, sample, edm(sigma[None])), theirs)


def test_flow_agrees_with_diffusers():
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(4)
    draws = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(1, 3, generator=draws), torch.randn(1, 3, generator=draws)
    t = scheduler.timesteps[1:2]
    torch.testing.assert_close(flow(t / 1000).add_noise(x0, noise), scheduler.scale_noise(x0, t, noise))


def test_unknown_types_are_refused():
    level = NoiseLevel(torch.ones(1), torch.ones(1))
    for function in (to_x0, training_target):
        with pytest.raises(ValueError, match="prediction_type"):
            function("velocity", torch.ones(1, 2), torch.ones(1, 2), level)
