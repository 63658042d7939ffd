"""Group advantages and sharpening weights."""

import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from amd_plugin import group_advantage, sharpening_weights
from amd_plugin.maths.advantage import aggregate

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
def test_order_does_not_matter(values, size, shuffling):
    reward, groups = torch.tensor(values), groups_of(len(values), size)
    order = list(range(len(values)))
    shuffling.shuffle(order)
    torch.testing.assert_close(
        group_advantage(reward[order], groups[order]), group_advantage(reward, groups)[order], rtol=1e-4, atol=1e-4
    )


@given(rewards, st.integers(1, 6), st.sampled_from(["clip", "tanh"]), st.floats(0.1, 2.0))
def test_squashed_advantages_stay_within_the_limit(values, size, squash, limit):
    got = group_advantage(torch.tensor(values), groups_of(len(values), size), squash=squash, limit=limit)
    assert (got.abs() <= limit * (1 + 1e-6)).all()


@given(rewards, st.integers(2, 6), st.sampled_from([math.nan, math.inf, -math.inf, 3e38, -1e20]), st.integers(0, 100))
def test_a_failed_reward_is_neutral_and_silent(values, size, bad, index):
    reward, groups = torch.tensor(values), groups_of(len(values), size)
    index %= len(values)
    reward[index] = bad
    got = group_advantage(reward, groups)
    assert got[index] == 0
    assert torch.isfinite(got).all()
    others = torch.arange(len(values)) != index
    torch.testing.assert_close(got[others], group_advantage(reward[others], groups[others]), rtol=1e-4, atol=1e-4)


@given(rewards, st.integers(1, 6), st.floats(0, 3))
def test_a_tolerance_only_ever_shortens_differences(values, size, tolerance):
    reward, groups = torch.tensor(values), groups_of(len(values), size)
    plain = group_advantage(reward, groups, squash=None)
    got = group_advantage(reward, groups, squash=None, tolerance=tolerance)
    assert not got[plain.abs() <= tolerance].any()
    torch.testing.assert_close(got.abs(), (plain.abs() - tolerance).clamp(min=0))
    assert (got * plain >= 0).all()


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
    """With weights w the optimal fake prediction is that of q w, so DMD's direction vanishes where q = p / w."""
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


def independent_gdpo(rewards, weights, size):
    """GDPO in plain Python: normalise each reward in each group, sum what there is, normalise over the batch."""

    def normalised(values):
        known = [v for v in values if math.isfinite(v)]
        mean = sum(known) / len(known) if known else 0.0
        std = math.sqrt(sum((v - mean) ** 2 for v in known) / (len(known) - 1)) if len(known) > 1 else 0.0
        return [(v - mean) / (std + 1e-4) if math.isfinite(v) else None for v in values]

    count = len(rewards)
    columns = [[None] * count for _ in weights]
    for k in range(len(weights)):
        for start in range(0, count, size):
            group = [rewards[i][k] for i in range(start, min(start + size, count))]
            columns[k][start : start + size] = normalised(group)
    total = []
    for i in range(count):
        terms = [w * columns[k][i] for k, w in enumerate(weights) if columns[k][i] is not None]
        total.append(sum(terms) if terms else math.nan)
    return [0.0 if value is None else value for value in normalised(total)]


some = st.one_of(st.floats(-100, 100, width=32), st.sampled_from([math.nan, math.inf]))
several = st.lists(st.lists(some, min_size=2, max_size=2), min_size=2, max_size=16)


@given(several, st.sampled_from([(1.0, 1.0), (0.5, 2.0), (-1.0, 1.0)]), st.integers(1, 4))
def test_normalize_then_sum_is_gdpo(values, weights, size):
    got = group_advantage(*aggregate(torch.tensor(values).double(), groups_of(len(values), size), torch.tensor(weights), "normalize_then_sum"), squash=None)  # fmt: skip
    torch.testing.assert_close(got, torch.tensor(independent_gdpo(values, weights, size)).double(), rtol=1e-4, atol=1e-4)


@given(st.integers(2, 4), st.integers(1, 4), st.integers(0, 999))
def test_normalize_then_sum_is_trls(size, groups, seed):
    """As `GRPOTrainer` has it for complete groups, with missing values: nanmean, nanstd, weighted nansum, 1e-4."""
    from trl.trainer.utils import nanstd

    draws = random.Random(seed)
    rewards = torch.tensor([[draws.gauss(0, 3), draws.choice([0.0, 1.0, math.nan])] for _ in range(size * groups)])
    weights = torch.tensor([1.0, 0.7])
    grouped = rewards.view(-1, size, 2)
    z = (grouped - grouped.nanmean(1, keepdim=True)) / (nanstd(grouped, dim=1, keepdim=True) + 1e-4)
    total = (z.view(-1, 2) * weights).nansum(1)
    expected = (total - total.mean()) / (nanstd(total) + 1e-4)
    # A reward that only one sample of a group has says nothing there; TRL's nanstd gives NaN for one value and drops it too.
    got = group_advantage(*aggregate(rewards, groups_of(len(rewards), size), weights, "normalize_then_sum"), squash=None)
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)


@given(several, st.sampled_from([(1.0, 1.0), (0.5, 2.0), (3.0, 0.0)]), st.integers(1, 4))
def test_sum_then_normalize_compares_sums_of_samples_that_have_all_rewards(values, weights, size):
    rewards, groups = torch.tensor(values), groups_of(len(values), size)
    got, same = aggregate(rewards, groups, torch.tensor(weights))
    counted = [k for k, w in enumerate(weights) if w]
    for row, total in zip(values, got.tolist(), strict=True):
        if all(math.isfinite(row[k]) for k in counted):
            assert math.isclose(total, sum(weights[k] * row[k] for k in counted), rel_tol=1e-5, abs_tol=1e-4)
        else:
            assert math.isnan(total)
    assert torch.equal(same, groups)


@given(st.floats(-1e3, 1e3, width=32), st.integers(2, 8), st.sampled_from(["sum_then_normalize", "normalize_then_sum"]))
def test_constant_rewards_give_exactly_zero_however_they_are_joined(value, count, how):
    rewards = torch.full((count, 3), value) * torch.tensor([1.0, 0.1, -2.0])
    assert not group_advantage(*aggregate(rewards, groups_of(count, 2), torch.tensor([1.0, 0.3, 2.0]), how)).any()


@given(several, st.floats(0.25, 1e3), st.floats(-10, 10))
def test_normalize_then_sum_knows_no_units(values, scale, shift):
    """Except for 1e-4 beside the spread: rewards here spread much wider."""
    rewards = torch.tensor(values).double()
    rewards[:, 0] *= 1e6
    groups, weights = groups_of(len(values), 2), torch.tensor([1.0, 1.0])
    other = torch.stack((rewards[:, 0] * scale + shift, rewards[:, 1]), 1)
    one, two = (aggregate(r, groups, weights, "normalize_then_sum")[0] for r in (rewards, other))
    torch.testing.assert_close(one, two, rtol=1e-3, atol=2e-2, equal_nan=True)


def test_one_reward_summed_is_that_reward():
    reward, groups = torch.randn(8), groups_of(8, 4)
    total, _ = aggregate(reward[:, None], groups, torch.ones(1))
    assert torch.equal(total, reward)


def test_a_missing_reward_has_no_say_and_a_sample_without_any_has_failed():
    rewards = torch.tensor([[1.0, math.nan], [3.0, 5.0], [math.nan, math.nan], [2.0, 7.0]])
    total, groups = aggregate(rewards, torch.zeros(4), torch.ones(2), "normalize_then_sum")
    assert total[2].isnan() and torch.isfinite(total[[0, 1, 3]]).all() and not groups.any()
    assert math.isclose(total[0], -1 / (1 + 1e-4), rel_tol=1e-5)  # its first reward alone: mean 2, spread 1
    assert aggregate(rewards, torch.zeros(4), torch.tensor([1.0, 0.0]))[0].isnan().tolist() == [False, False, True, False]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ((torch.zeros(3), torch.zeros(3), torch.ones(1)), r"\[B, K\]"),
        ((torch.zeros(3, 2), torch.zeros(2), torch.ones(2)), r"\[B, K\]"),
        ((torch.zeros(3, 2), torch.zeros(3), torch.ones(1)), r"\[B, K\]"),
        ((torch.zeros(3, 2), torch.zeros(3), torch.ones(2), "mean"), "aggregation"),
    ],
)
def test_aggregation_is_checked(arguments, word):
    with pytest.raises(ValueError, match=word):
        aggregate(*arguments)
