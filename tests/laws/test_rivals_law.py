"""What the rivals do, in closed form: fixed points, gradients and targets that are known."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from amd_plugin import Signals, group_advantage
from amd_plugin.maths.operators import chain, dmd, normalize
from amd_plugin.maths.prediction import edm, flow, variance_preserving
from amd_plugin.maths.rivals import (
    best_of_k_weights,
    implicit_policy_loss,
    normalize_within_groups,
    path_step,
    path_target,
    policy_loss,
    rank_advantage,
    transition_log_density,
    weigh_by_reward,
)


@pytest.mark.parametrize("k", [1.0, 2.0, 4.0, 7.5])
def test_the_best_of_k_is_the_fixed_point_and_its_divergence_is_known(k):
    """Midpoints of u = F_p(r) under the teacher are a grid on which p is uniform and the best of k has density k u^(k-1)."""
    count = 20_000
    quantile = (torch.arange(count).double() + 0.5) / count
    best = k * quantile ** (k - 1)
    own_quantile = quantile**k  # of the best of k's own samples
    told = own_quantile > 1e-9  # below, 2 u - 1 rounds to -1
    product = best[told] * best_of_k_weights(2 * own_quantile[told] - 1, k)
    assert (product / product.mean() - 1).abs().max() < 1e-6, "density times weight must be the teacher's, uniform"
    divergence = torch.special.xlogy(best, best).mean().item()
    assert divergence == pytest.approx(math.log(k) - (k - 1) / k, abs=2e-4)


def test_ranks_are_quantiles_and_any_increasing_reward_gives_the_same():
    reward, groups = torch.randn(40, generator=torch.Generator().manual_seed(0)), torch.arange(40) // 8
    a = rank_advantage(reward, groups)
    for group in range(5):
        assert a[groups == group].sort().values.tolist() == [(2 * i + 1) / 8 - 1 for i in range(8)]
    assert torch.equal(a, rank_advantage(7 * reward.double().exp() - 3, groups).float())
    failed = torch.where(torch.arange(40) == 3, torch.nan, reward)
    again = rank_advantage(failed, groups)
    assert again[3] == 0 and again[:8].sum().abs() < 1e-6 and torch.equal(again[8:], a[8:])


@given(st.floats(-1e6, 1e6, width=32), st.integers(1, 11), st.floats(1, 16))
def test_a_constant_reward_selects_nothing_to_the_bit(value, count, k):
    a = rank_advantage(torch.full((count,), value), torch.zeros(count, dtype=torch.long))
    assert not a.any() and torch.equal(best_of_k_weights(a, k), torch.ones(count))


@pytest.mark.parametrize("slope", [-3.0, 0.5])
def test_the_policy_gradient_is_that_of_the_expected_reward(slope):
    """A transition x ~ N(alpha theta, sigma^2) with reward slope x: d E[r] / d theta = alpha slope, in spreads of the reward."""
    count, alpha, sigma = 200_000, 0.6, 0.4
    theta = torch.full((count, 1), 0.3, dtype=torch.double, requires_grad=True)
    noise = torch.randn(count, 1, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    drawn = (alpha * theta + sigma * noise).detach()
    level = edm(torch.full((count,), sigma))._replace(alpha=torch.full((count,), alpha))
    advantage = group_advantage(slope * drawn[:, 0], torch.zeros(count, dtype=torch.long), squash=None)
    policy_loss(transition_log_density(drawn, theta, level), advantage).mean().backward()
    expected = alpha * slope / (abs(slope) * sigma)
    assert -theta.grad.sum().item() == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("beta", [0.3, 1.0])
def test_the_implicit_policies_meet_at_a_step_of_policy_improvement(beta):
    """Two kinds of samples at one x_t, the old policy's mean: the minimum is old + E[a (x0 - old)] / beta."""
    x0, share, a = torch.tensor([-1.0, 2.0]).double(), torch.tensor([0.7, 0.3]).double(), torch.tensor([-0.4, 0.8]).double()
    old = (share * x0).sum().expand(2, 1)
    best = (old[0] + (share * a * (x0 - old[:, 0])).sum() / beta).clone().requires_grad_()
    loss = implicit_policy_loss(best.expand(2, 1), old, x0[:, None], a, beta, adaptive=False)
    (gradient,) = torch.autograd.grad((share * loss).sum(), best)
    assert gradient.abs() < 1e-12
    assert best > old[0], "the sample that succeeded is the larger one"


def test_without_differences_the_implicit_policies_agree_with_the_old_one():
    """Over samples whose mean the old policy predicts, no advantage means no gradient."""
    x0, v = torch.tensor([[-1.0], [1.0]]), torch.zeros(1, 1, requires_grad=True)
    implicit_policy_loss(v.expand(2, 1), v.detach().expand(2, 1), x0, torch.zeros(2), adaptive=False).sum().backward()
    assert v.grad == 0


def test_rewarded_matching_rests_where_matching_rests():
    draws = torch.Generator().manual_seed(0)
    x0, real, fake = (torch.randn(6, 3, generator=draws) for _ in range(3))
    signals = Signals(x0, real, None, fake, advantage=torch.randn(6, generator=draws))
    plain, weighed = dmd()(signals).total(), chain(dmd(), weigh_by_reward(0.7))(signals).total()
    torch.testing.assert_close(weighed, torch.exp(0.7 * signals.advantage)[:, None] * plain)
    assert not chain(dmd(), weigh_by_reward(0.7))(signals._replace(fake=real)).total().any()


@pytest.mark.parametrize("centring", [0.0, 0.5, 1.0])
def test_every_group_moves_by_the_same_amount(centring):
    draws = torch.Generator().manual_seed(0)
    groups = torch.tensor([0, 1, 0, 1, 1, 0])
    x0, real, uncond, fake = (torch.randn(6, 2, 3, generator=draws).double() for _ in range(4))
    scale = torch.where(groups == 0, 1.0, 1000.0)[:, None, None]
    signals = Signals(x0, scale * real, scale * uncond, scale * fake, groups=groups)
    moved = chain(dmd(2.0), normalize_within_groups(centring))(signals).total()
    for group in (0, 1):
        part = moved[groups == group]
        assert part.square().mean().item() == pytest.approx(1.0, abs=1e-4)
        raw = dmd(2.0)(signals).total()[groups == group]
        direction = raw - centring * raw.mean(0)
        assert torch.nn.functional.cosine_similarity(part.flatten(), direction.flatten(), dim=0) > 1 - 1e-9
        assert centring < 1 or part.mean(0).abs().max() < 1e-9


def test_the_other_normaliser_does_not_read_groups():
    x0 = torch.ones(2, 1)
    with pytest.raises(ValueError, match="groups"):
        chain(dmd(), normalize_within_groups())(Signals(x0, x0, None, x0))
    chain(dmd(), normalize())(Signals(x0, x0, None, x0))


ALPHAS = torch.linspace(0.999, 0.01, 1000)
SCHEDULES = {
    "flow": [flow(torch.tensor([u])) for u in (1.0, 0.8, 0.6, 0.4)],
    "vp": [variance_preserving(ALPHAS, torch.tensor([t])) for t in (999, 700, 400, 100)],
}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_teacher_that_knows_the_sample_has_a_straight_path(schedule):
    """Where every prediction is c, the path runs along the line from the noise to c, and its chord points to c."""
    levels, c = SCHEDULES[schedule], torch.tensor([[0.7, -2.0]]).double()
    start = x = torch.tensor([[1.3, 0.2]]).double()
    for level, following in pairwise(levels):
        x = path_step(x, c, level, following)
    torch.testing.assert_close(path_target(start, x, levels[0], levels[-1]), c, rtol=1e-5, atol=1e-5)
