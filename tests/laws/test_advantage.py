"""Group advantages and sharpening weights."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from amd_plugin import group_advantage, sharpening_weights

rewards = st.lists(st.floats(-1e3, 1e3, width=32), min_size=2, max_size=24)


def groups_of(count, size):
    return torch.arange(count) // size


@given(rewards, st.integers(1, 6))
def test_trls_formula(values, size):
    """TRL's GRPO: (r - mean) / (std + 1e-4), std with Bessel's correction, 0 for a group of one."""
    reward, groups = torch.tensor(values), groups_of(len(values), size)
    got = group_advantage(reward, groups, squash=None)
    for g in groups.unique():
        r = reward[groups == g].double()
        std = r.std() if len(r) > 1 else torch.zeros(())
        torch.testing.assert_close(got[groups == g].double(), (r - r.mean()) / (std + 1e-4), rtol=1e-3, atol=1e-3)


@given(st.floats(-1e6, 1e6, width=32), st.integers(1, 9), st.sampled_from(["group", "batch", "none"]))
def test_equal_rewards_give_exactly_zero(value, count, scale):
    assert not group_advantage(torch.full((count,), value), torch.zeros(count, dtype=torch.long), scale).any()


@given(rewards, st.integers(1, 6), st.randoms())
def test_order_does_not_matter(values, size, random):
    reward, groups = torch.tensor(values), groups_of(len(values), size)
    order = list(range(len(values)))
    random.shuffle(order)
    torch.testing.assert_close(
        group_advantage(reward[order], groups[order]), group_advantage(reward, groups)[order], rtol=1e-4, atol=1e-4
    )


@given(rewards, st.integers(1, 6), st.sampled_from(["clip", "tanh"]), st.floats(0.1, 2.0))
def test_squashed_advantages_stay_within_the_limit(values, size, squash, limit):
    got = group_advantage(torch.tensor(values), groups_of(len(values), size), squash=squash, limit=limit)
    assert (got.abs() <= limit * (1 + 1e-6)).all()


@given(rewards, st.integers(2, 6), st.sampled_from([math.nan, math.inf, -math.inf]), st.integers(0, 100))
def test_a_failed_reward_is_neutral_and_silent(values, size, bad, index):
    reward, groups = torch.tensor(values), groups_of(len(values), size)
    index %= len(values)
    reward[index] = bad
    got = group_advantage(reward, groups)
    assert got[index] == 0
    assert torch.isfinite(got).all()
    others = torch.arange(len(values)) != index
    torch.testing.assert_close(got[others], group_advantage(reward[others], groups[others]), rtol=1e-4, atol=1e-4)


def test_all_failed():
    assert not group_advantage(torch.full((4,), math.nan), torch.zeros(4, dtype=torch.long)).any()


def test_a_floor_keeps_noise_from_becoming_a_sign_function():
    reward = torch.tensor([1.0, 1.0 + 1e-2, 1.0 - 1e-2, 1.0])
    groups = torch.zeros(4, dtype=torch.long)
    assert group_advantage(reward, groups).abs().max() == 1
    assert group_advantage(reward, groups, std_floor=1.0).abs().max() < 0.011


def test_batch_scale_divides_by_the_batch_and_centres_by_the_group():
    reward = torch.tensor([0.0, 1.0, 10.0, 14.0])
    groups = torch.tensor([0, 0, 1, 1])
    got = group_advantage(reward, groups, "batch", squash=None)
    torch.testing.assert_close(got, torch.tensor([-0.5, 0.5, -2.0, 2.0]) / (reward.std() + 1e-4))
    assert group_advantage(reward, groups, "none", squash=None).tolist() == [-0.5, 0.5, -2.0, 2.0]


@pytest.mark.parametrize(
    ("options", "word"), [({"scale": "x"}, "scale"), ({"squash": "x"}, "squash"), ({"limit": 0.0}, "limit")]
)
def test_unknown_names_are_refused(options, word):
    with pytest.raises(ValueError, match=word):
        group_advantage(torch.zeros(2), torch.zeros(2), **options)


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r"\[B\]"):
        group_advantage(torch.zeros(3), torch.zeros(2))


@given(
    st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=24), st.floats(0, 1), st.sampled_from(["linear", "exponential"])
)
def test_weights_have_mean_one_and_favour_failures(values, sharpening, kind):
    a = torch.tensor(values)
    w = sharpening_weights(a, sharpening, kind)
    assert abs(w.mean().item() - 1) < 1e-5
    assert (w >= 0).all()
    order = a.argsort()
    assert (w[order].diff() <= 1e-6).all()


@given(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=24), st.sampled_from(["linear", "exponential"]))
def test_no_sharpening_is_exactly_one(values, kind):
    assert torch.equal(sharpening_weights(torch.tensor(values), 0.0, kind), torch.ones(len(values)))


def test_the_exponential_tilt():
    a = torch.tensor([-1.0, 1.0])
    w = sharpening_weights(a, 0.7, "exponential")
    assert math.isclose(w[0] / w[1], math.exp(1.4), rel_tol=1e-5)


def test_sharpening_is_checked():
    with pytest.raises(ValueError, match="sharpening"):
        sharpening_weights(torch.zeros(2), -0.1)
    with pytest.raises(ValueError, match="kind"):
        sharpening_weights(torch.zeros(2), 0.1, "quadratic")


def test_the_fixed_point_law():
    """With weights w the optimal fake prediction is that of q w, so DMD's direction vanishes where q = p / w (METHOD)."""
    points = torch.tensor([-1.0, 0.2, 1.5], dtype=torch.float64)
    p = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    advantage = torch.tensor([-1.0, 0.3, 0.8], dtype=torch.float64)
    for kind, sharpening in (("linear", 0.9), ("exponential", 1.5)):
        w = sharpening_weights(advantage, sharpening, kind)
        q = p / w / (p / w).sum()
        for sigma in (0.1, 0.5, 0.9):
            x_t = torch.linspace(-3, 3, 61, dtype=torch.float64)[:, None]
            likelihood = (-((x_t - (1 - sigma) * points) ** 2) / (2 * sigma**2)).exp()
            real = (likelihood * p * points).sum(1) / (likelihood * p).sum(1)
            fake = (likelihood * q * w * points).sum(1) / (likelihood * q * w).sum(1)
            unweighted = (likelihood * q * points).sum(1) / (likelihood * q).sum(1)
            assert (real - fake).abs().max() < 1e-10
            assert (real - unweighted).abs().max() > 1e-3
