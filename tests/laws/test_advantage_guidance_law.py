"""Advantage guidance in closed form, on a grid in one dimension: the contrast, its special cases, and its fixed point."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from amd_plugin import Signals
from amd_plugin.maths.advantage_guidance import BAD, GOOD, KAPPA, NONE, failure_probability, guide_by_advantage, outcomes
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


@pytest.mark.parametrize(("alpha", "sigma"), LEVELS)
def test_weighed_by_the_probability_of_failure_it_is_the_gradient_of_log_success(alpha, sigma):
    x_t = torch.linspace(-2, 2, 41).double().requires_grad_()
    success = posterior(x_t, alpha, sigma, STUDENT * GOOD_SHARE)[1] / posterior(x_t, alpha, sigma, STUDENT)[1]
    (gradient,) = torch.autograd.grad(success.log().sum(), x_t)
    contrast = denoiser(x_t, alpha, sigma, STUDENT * GOOD_SHARE) - denoiser(x_t, alpha, sigma, STUDENT * BAD_SHARE)
    failure = (posterior(x_t, alpha, sigma, STUDENT)[0] * failure_probability(ADVANTAGE)).sum(1)  # mean over samples at x_t
    torch.testing.assert_close(failure * contrast, sigma**2 / alpha * gradient, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 4.0])
def test_at_low_noise_the_direction_vanishes_at_the_tilted_teacher(gamma):
    """q* = p P(good)^gamma: its direction is small beside that of the teacher's own distribution."""
    alpha, sigma = 0.99, 0.01
    x_t = torch.linspace(-1.5, 1.5, 31).double()
    teacher = STUDENT

    def direction(student):
        good, bad, plain = (
            denoiser(x_t, alpha, sigma, student * share)[:, None] for share in (GOOD_SHARE, BAD_SHARE, torch.ones(()))
        )
        real = denoiser(x_t, alpha, sigma, teacher)[:, None]
        a = (posterior(x_t, alpha, sigma, student)[0] * ADVANTAGE).sum(1)
        signals = Signals(x_t[:, None], real, None, plain, advantage=a, fake_good=good, fake_bad=bad)
        return chain(dmd(), guide_by_advantage(gamma))(signals).total().abs().max()

    law = teacher * GOOD_SHARE**gamma
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


def test_failing_samples_follow_the_contrast_and_good_ones_stay():
    s = signals()._replace(
        advantage=torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0, 1.0]), advantage_factor=torch.tensor([1.0] * 5 + [0])
    )
    weights = torch.tensor([0.975, 0.7375, 0.5, 0.2625, 0.025, 0.0])
    torch.testing.assert_close(chain(dmd(), guide_by_advantage(2.0))(s).advance, 2 * weights[:, None] * s.contrast())


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
