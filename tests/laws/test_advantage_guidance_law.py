"""Advantage guidance in closed form, on a grid in one dimension: the contrast, its special cases, and its fixed point."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from amd_plugin import Signals
from amd_plugin.maths.advantage_guidance import BAD, GOOD, KAPPA, NONE, guide_by_advantage, log_odds, outcomes, unsaturated
from amd_plugin.maths.operators import chain, dmd, normalize

GRID = torch.linspace(-5, 5, 4001).double()
STUDENT = 0.5 * torch.exp(-((GRID + 1) ** 2) / 0.5) + 0.3 * torch.exp(-((GRID - 1.5) ** 2) / 0.2)
ADVANTAGE = 0.9 * torch.tanh(2 * GRID)  # smooth, both signs
GOOD_SHARE, BAD_SHARE = (1 + KAPPA * ADVANTAGE) / 2, (1 - KAPPA * ADVANTAGE) / 2
LEVELS = [(1.0, 0.1), (0.8, 0.2), (0.6, 0.8), (0.3, 0.7), (0.5, math.sqrt(0.75))]  # (alpha, sigma) of several schedules


def posterior(x_t, alpha, sigma, density):
    """p(x0 | x_t) on the grid for every x_t, [N, G], and the density of x_t up to a constant, [N]."""
    likelihood = torch.exp(-((x_t[:, None] - alpha * GRID) ** 2) / (2 * sigma**2))
    joint = likelihood * density
    return joint / joint.sum(1, keepdim=True), joint.sum(1)


def denoiser(x_t, alpha, sigma, density):
    return (posterior(x_t, alpha, sigma, density)[0] * GRID).sum(1)


@pytest.mark.parametrize(("alpha", "sigma"), LEVELS)
def test_the_contrast_is_the_gradient_of_the_log_odds(alpha, sigma):
    x_t = torch.linspace(-2, 2, 41).double().requires_grad_()
    good, bad = (posterior(x_t, alpha, sigma, STUDENT * share)[1] for share in (GOOD_SHARE, BAD_SHARE))
    (gradient,) = torch.autograd.grad((good / bad).log().sum(), x_t)
    contrast = denoiser(x_t, alpha, sigma, STUDENT * GOOD_SHARE) - denoiser(x_t, alpha, sigma, STUDENT * BAD_SHARE)
    torch.testing.assert_close(contrast, sigma**2 / alpha * gradient, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(("alpha", "sigma"), LEVELS)
def test_the_prediction_for_failures_alone_is_sharpening(alpha, sigma):
    x_t = torch.linspace(-2, 2, 41).double()
    weights, _ = posterior(x_t, alpha, sigma, STUDENT)
    sharpened = (weights * (1 - KAPPA * ADVANTAGE) * GRID).sum(1) / (weights * (1 - KAPPA * ADVANTAGE)).sum(1)
    torch.testing.assert_close(denoiser(x_t, alpha, sigma, STUDENT * BAD_SHARE), sharpened, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 4.0])
def test_at_low_noise_the_direction_vanishes_at_the_tilted_teacher(gamma):
    """q* = p (P(good) / P(bad))^gamma: its direction is small beside that of the teacher's own distribution."""
    alpha, sigma = 0.99, 0.01
    x_t = torch.linspace(-1.5, 1.5, 31).double()
    teacher = STUDENT

    def direction(student):
        good, bad, plain = (
            denoiser(x_t, alpha, sigma, student * share)[:, None] for share in (GOOD_SHARE, BAD_SHARE, torch.ones(()))
        )
        real = denoiser(x_t, alpha, sigma, teacher)[:, None]
        signals = Signals(x_t[:, None], real, None, plain, fake_good=good, fake_bad=bad)
        return chain(dmd(), guide_by_advantage(gamma))(signals).total().abs().max()

    law = teacher * torch.exp(gamma * log_odds(ADVANTAGE))
    assert direction(law) < 0.02 * direction(teacher)


def signals(batch=6):
    draws = torch.Generator().manual_seed(0)
    x0, real, fake, good, bad = (torch.randn(batch, 3, generator=draws) for _ in range(5))
    return Signals(x0, real, None, fake, sigma=torch.linspace(0, 1, batch), fake_good=good, fake_bad=bad)


def test_off_it_is_dmd_to_the_bit():
    with_contrast, without = signals(), signals()._replace(fake_good=None, fake_bad=None)
    plain = chain(dmd(), normalize())(without).total()
    assert torch.equal(chain(dmd(), guide_by_advantage(0.0), normalize())(with_contrast).total(), plain)
    assert torch.equal(chain(dmd(), guide_by_advantage(4.0), normalize())(without).total(), plain)
    equal = with_contrast._replace(fake_good=with_contrast.fake, fake_bad=with_contrast.fake)
    assert torch.equal(chain(dmd(), guide_by_advantage(4.0), normalize())(equal).total(), plain)


def test_the_normaliser_is_that_of_dmd():
    """The contrast lengthens the direction, and its own length is not divided away."""
    plain = chain(dmd(), normalize())(signals()).total()
    one, four = (chain(dmd(), guide_by_advantage(gamma), normalize())(signals()).total() for gamma in (1.0, 4.0))
    torch.testing.assert_close(four - plain, 4 * (one - plain))


def test_all_samples_follow_the_contrast_whatever_their_own_reward():
    s = signals()._replace(advantage=torch.linspace(-1, 1, 6), advantage_factor=torch.tensor([1.0] * 5 + [0]))
    followed = chain(dmd(), guide_by_advantage(2.0))(s).advance
    torch.testing.assert_close(followed, torch.tensor([2.0] * 5 + [0])[:, None] * s.contrast())


@pytest.mark.parametrize("shape", [(4, 3, 6, 5), (4, 3, 2, 6, 5)])
def test_guidance_of_pictures_and_videos_neither_tints_nor_saturates(shape):
    draws = torch.Generator().manual_seed(0)
    prediction, contrast = torch.rand(shape, generator=draws), torch.randn(shape, generator=draws)
    places = tuple(range(2, len(shape)))
    deviations = prediction - prediction.mean(places, keepdim=True)
    kept = unsaturated(contrast, prediction)
    torch.testing.assert_close((kept * deviations).flatten(1).sum(1), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(kept.mean(places), torch.zeros(4, 3), atol=1e-6, rtol=0)
    tint = torch.randn(4, 3, *[1] * len(places), generator=draws)
    torch.testing.assert_close(unsaturated(contrast + 3 * deviations + tint, prediction), kept, atol=1e-5, rtol=1e-4)
    for one_colour in (torch.full(shape, 0.1), torch.zeros(shape)):
        untinted = contrast - contrast.mean(places, keepdim=True)
        torch.testing.assert_close(unsaturated(contrast, one_colour), untinted, atol=1e-4, rtol=0)
    s = Signals(*[prediction] * 2, None, prediction, fake_good=contrast, fake_bad=torch.zeros(shape))
    torch.testing.assert_close(chain(dmd(), guide_by_advantage(4.0))(s).total(), 4 * kept)


def test_channels_are_where_they_are_said_to_be():
    draws = torch.Generator().manual_seed(0)
    contrast, prediction = (torch.randn(2, 3, 5, 4, 4, generator=draws) for _ in range(2))
    frames_first = unsaturated(contrast.transpose(1, 2), prediction.transpose(1, 2), channels=2)
    torch.testing.assert_close(frames_first.transpose(1, 2), unsaturated(contrast, prediction))
    tokens, points = (value.flatten(2).transpose(1, 2) for value in (contrast, prediction))
    torch.testing.assert_close(unsaturated(tokens, points).transpose(1, 2), unsaturated(contrast, prediction).flatten(2))
    s = Signals(*[prediction.transpose(1, 2)] * 2, None, prediction.transpose(1, 2), channels=2)
    s = s._replace(fake_good=contrast.transpose(1, 2), fake_bad=torch.zeros(2, 5, 3, 4, 4))
    torch.testing.assert_close(chain(dmd(), guide_by_advantage(1.0))(s).advance, frames_first)
    one_place = torch.randn(4, 3, 1, 1)
    assert torch.equal(unsaturated(one_place, torch.randn(4, 3, 1, 1)), one_place), "its mean is all that there is"


def test_guidance_is_wider_than_predictions_of_half_precision():
    values = [torch.randn(2, 3, 4, 4).bfloat16() for _ in range(5)]
    s = Signals(values[0], values[1], None, values[2], fake_good=values[3], fake_bad=values[4])
    assert chain(dmd(), guide_by_advantage(1.0))(s).advance.dtype == torch.float32


def test_predictions_of_outcomes_are_checked():
    s = signals()
    with pytest.raises(ValueError, match="fake_bad and fake_good: give both or neither"):
        s._replace(fake_bad=None).check()
    with pytest.raises(ValueError, match=r"Signals.fake_good: must have x0's shape"):
        s._replace(fake_good=torch.zeros(1)).check()


@given(st.floats(-1, 1), st.floats(0, 0.99))
def test_outcomes_have_their_probabilities(a, kappa):
    count = 9001
    draws = (torch.arange(count) + 0.5) / count
    got = outcomes(torch.full((count,), a), draws, kappa)
    share = {outcome: (got == outcome).double().mean().item() for outcome in (NONE, BAD, GOOD)}
    if torch.tensor(a) == 0:
        assert share[NONE] == 1
        return
    assert share[NONE] == pytest.approx(1 / 3, abs=2 / count)
    assert share[GOOD] == pytest.approx((1 + kappa * a) / 3, abs=3 / count)
    assert share[BAD] == pytest.approx((1 - kappa * a) / 3, abs=3 / count)


def test_a_constant_or_failed_reward_gives_no_outcome():
    assert not outcomes(torch.zeros(100), torch.rand(100)).any()
