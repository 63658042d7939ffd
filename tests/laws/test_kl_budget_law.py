"""A budget in nats: what the tilt that spends it costs, in closed form and on a grid, in any unit of the reward."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from amd_plugin.maths.kl_budget import LARGEST, divergence_of, tilt_for

GRID = torch.linspace(-4, 4, 80_001).double()
TEACHER = 0.6 * torch.exp(-((GRID + 1) ** 2) / 0.5) + 0.3 * torch.exp(-((GRID - 1.5) ** 2) / 0.2)
TEACHER = TEACHER / TEACHER.sum()
REWARD = torch.tanh(2 * GRID) + 0.3 * GRID
ONE = torch.zeros(4000, dtype=torch.long)

rewards = st.lists(st.floats(-100, 100, width=32), min_size=2, max_size=24)
budgets = st.floats(0.01, 0.6)


def quantiles(density, count=4000):
    """`count` equally likely points of a density on the grid."""
    levels = (torch.arange(count).double() + 0.5) / count
    return REWARD[torch.searchsorted(density.cumsum(0), levels).clamp(max=len(GRID) - 1)]


@pytest.mark.parametrize("tilt", [0.25, 1.0, 3.0])
def test_at_the_fixed_point_the_budget_is_the_divergence_from_the_teacher(tilt):
    tilted = TEACHER * torch.exp(tilt * REWARD)
    tilted = tilted / tilted.sum()
    nats = (tilted * (tilted / TEACHER).log()).sum().item()
    for samples, of in ((quantiles(tilted), "student"), (quantiles(TEACHER), "teacher")):
        assert tilt_for(samples, ONE, nats, of).item() == pytest.approx(tilt, rel=0.01)


def test_gaussian_rewards_are_known():
    """q is the teacher moved by lambda spreads, which costs lambda^2 / 2."""
    normal = torch.distributions.Normal(0.0, 1.0).icdf(((torch.arange(4000) + 0.5) / 4000).double())
    for nats in (0.1, 0.5):
        assert tilt_for(5 * normal, ONE, nats).item() == pytest.approx(math.sqrt(2 * nats) / 5, rel=0.01)


@given(rewards, st.integers(2, 8), budgets, st.sampled_from(["student", "teacher"]))
def test_the_tilted_samples_cost_the_budget(values, size, nats, of):
    reward, groups = torch.tensor(values).double(), torch.arange(len(values)) // size
    tilt = tilt_for(reward, groups, nats, of)
    spread = torch.cat([part - part.mean() for part in reward.split(size)]).square().mean().sqrt()
    if tilt * spread < 0.999 * LARGEST and tilt > 0:
        assert divergence_of(reward, groups, tilt, of).item() == pytest.approx(nats, rel=1e-6)
    else:
        assert spread < 1e-6 or divergence_of(reward, groups, tilt, of) < nats


def test_the_divergence_is_that_of_the_softmax():
    a, groups = torch.tensor([0.0, 1.0, 3.0, 2.0, 2.5]).double(), torch.tensor([0, 0, 0, 1, 1])
    expected = {"teacher": 0.0, "student": 0.0}
    for part in (a[:3], a[3:]):
        uniform, tilted, back = torch.full_like(part, 1 / len(part)), part.mul(0.7).softmax(0), part.mul(-0.7).softmax(0)
        expected["teacher"] += len(part) / 5 * (tilted * (tilted / uniform).log()).sum()
        expected["student"] += len(part) / 5 * (uniform * (uniform / back).log()).sum()
    for of, value in expected.items():
        torch.testing.assert_close(divergence_of(a, groups, 0.7, of), value)


@given(rewards, budgets, st.floats(0.01, 1000), st.floats(-1000, 1000), st.randoms())
def test_unit_zero_and_order_do_not_matter(values, nats, scale, shift, shuffling):
    reward, groups = torch.tensor(values).double(), torch.arange(len(values)) % 3
    tilt = tilt_for(reward, groups, nats)
    order = list(range(len(values)))
    shuffling.shuffle(order)
    if tilt == 0 or reward.max() - reward.min() < 1e-3:  # differences that the shift rounds away
        return
    torch.testing.assert_close(scale * tilt_for(scale * reward + shift, groups, nats), tilt, rtol=1e-5, atol=0)
    torch.testing.assert_close(tilt_for(reward[order], groups[order], nats), tilt, rtol=1e-9, atol=0)


@given(st.floats(-1e6, 1e6, width=32), st.integers(1, 9))
def test_a_constant_reward_is_not_tilted(value, count):
    reward = torch.full((count,), value)
    assert tilt_for(reward, torch.zeros(count, dtype=torch.long), 0.5) == 0
    assert tilt_for(torch.arange(3.0), torch.arange(3), 0.5) == 0, "each prompt has one sample"


def test_more_budget_is_more_tilt():
    reward = torch.randn(64, generator=torch.Generator().manual_seed(0))
    tilts = [tilt_for(reward, torch.arange(64) // 8, nats) for nats in (0.0, 0.05, 0.2, 0.5, 1.0)]
    assert tilts[0] == 0 and tilts == sorted(tilts) and len(set(tilts)) == 5
