"""Distances against another implementation, and at their limits; intervals against the law they promise."""

import math

import pytest
import scipy.linalg
import torch

from amd_plugin import metrics as of
from amd_plugin.evaluate.students.bootstrap import mean_interval, spread_interval


def gaussian(count, size=6, seed=0, shift=0.0):
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


@pytest.mark.parametrize("size", [2, 6, 40])
def test_frechet_distance_is_scipys(size):
    a = gaussian(300, size) @ gaussian(size, size, seed=1)
    b = gaussian(200, size, seed=2) @ gaussian(size, size, seed=3) + 0.3
    ca, cb = torch.cov(a.T).numpy(), torch.cov(b.T).numpy()
    cross = scipy.linalg.sqrtm(ca @ cb).real
    expected = (a.mean(0) - b.mean(0)).square().sum().item() + (ca + cb - 2 * cross).trace()
    assert of.frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)
    assert of.frechet_distance(a, a) == pytest.approx(0, abs=1e-6)


def means(real, made):
    return [values.mean().item() for values in of.neighbours(real, made)]


def test_the_same_set_is_all_precise_recalled_and_covered():
    points = gaussian(200)
    precision, density, recall, coverage = means(points, points)
    assert precision == recall == coverage == 1 and density >= 1


def test_sets_apart_share_nothing():
    assert means(gaussian(100), gaussian(100, shift=50.0)) == [0, 0, 0, 0]


def test_dropping_a_mode_costs_recall_and_coverage_but_no_precision():
    left, right = gaussian(200), gaussian(200, seed=1, shift=40.0)
    precision, density, recall, coverage = means(torch.cat((left, right)), gaussian(200, seed=2))
    whole = means(torch.cat((left, right)), torch.cat((gaussian(100, seed=2), gaussian(100, seed=3, shift=40.0))))
    assert precision > 0.75 and density > 0.7
    assert recall < 0.5 and coverage < 0.5 < whole[3] and whole[2] > 0.75


def test_neighbours_one_by_one():
    real, made = gaussian(30), gaussian(20, seed=1)
    radius = [sorted((p - q).norm() for q in real)[3] for p in real]
    inside = [[bool((m - r).norm() <= reach) for r, reach in zip(real, radius, strict=True)] for m in made]
    found = of.neighbours(real, made, k=3)
    assert found.precision.tolist() == [float(any(row)) for row in inside]
    assert found.density.tolist() == pytest.approx([sum(row) / 3 for row in inside])
    assert found.coverage.tolist() == [float(any(column)) for column in zip(*inside, strict=True)]
    assert found.recall.tolist() == of.neighbours(made, real, k=3).precision.tolist()


def test_a_still_video_is_consistent_and_does_not_move():
    picture = torch.rand(2, 3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    still, flicker = picture.expand(-1, -1, 5, -1, -1), torch.cat((picture, 1 - picture) * 2, 2)
    seen = lambda videos: of.consistency(videos.transpose(1, 2).flatten(2))  # noqa: E731
    assert of.motion(still).tolist() == [0, 0] and torch.allclose(seen(still), torch.ones(2))
    assert (of.motion(flicker) > 0.3).all() and (seen(flicker) < 0.95).all()
    assert of.motion(torch.stack((torch.zeros(1, 4, 4), torch.ones(1, 4, 4)), 1)[None]).tolist() == [1]


def share(trials, covers):
    return sum(map(covers, range(trials))) / trials


def test_intervals_cover_the_mean_as_often_as_they_say():
    def covers(trial):
        values = torch.empty(40).exponential_(generator=torch.Generator().manual_seed(trial))
        _, low, high = mean_interval(values, seed=trial, key="x")
        return low <= 1 <= high

    assert 0.85 <= share(60, covers) <= 1, "percentiles of 40 skewed values cover about 92 %"


def test_samples_of_a_prompt_are_not_taken_for_independent():
    owners = torch.arange(30).repeat_interleave(10)

    def covers(trial, by_group):
        draws = torch.Generator().manual_seed(trial)
        values = torch.randn(30, generator=draws).repeat_interleave(10) + 0.1 * torch.randn(300, generator=draws)
        _, low, high = mean_interval(values, owners if by_group else None, seed=trial, key="x")
        return low <= 0 <= high

    assert share(40, lambda trial: covers(trial, True)) >= 0.85
    assert share(40, lambda trial: covers(trial, False)) <= 0.65


def test_an_interval_of_a_distance_has_the_spread_of_repeated_experiments():
    real = gaussian(500, 4)
    repeated = torch.tensor([of.frechet_distance(real, gaussian(100, 4, seed=n, shift=0.5)) for n in range(10, 110)])
    made = gaussian(100, 4, seed=7, shift=0.5)
    value, low, high = spread_interval(lambda at: of.frechet_distance(real, made[at]), torch.arange(100), seed=0, key="x")
    assert value == pytest.approx(of.frechet_distance(real, made)) and low < value < high
    assert 0.6 <= (high - low) / (2 * 1.96 * repeated.std().item()) <= 1.6


def test_intervals_are_keyed_and_leave_out_what_is_not_known():
    values = gaussian(50, 1)[:, 0]
    for hole in (torch.nan, torch.inf, -torch.inf):
        holes = torch.cat((values, torch.full((5,), hole)))
        assert mean_interval(values, seed=1, key="a") == mean_interval(holes, seed=1, key="a")
    assert mean_interval(values, seed=1, key="a")[1:] != mean_interval(values, seed=2, key="a")[1:]
    value, low, high = mean_interval(values[:1], seed=0, key="a")
    assert value == values[0] and low != low and high != high
    assert all(v != v for v in mean_interval(torch.full((3,), torch.nan), seed=0, key="a"))


def test_correlation_within_groups_does_not_see_what_groups_have_in_common():
    groups = torch.tensor([0, 0, 0, 1, 1, 1])
    a = torch.tensor([1.0, 2.0, 3.0, 11.0, 12.0, 13.0])
    assert of.correlation_within(a, 5 * a - 3, groups) == pytest.approx(1.0)
    assert of.correlation_within(a, torch.tensor([3.0, 2.0, 1.0, 13.0, 12.0, 11.0]), groups) == pytest.approx(-1.0)
    assert math.isnan(of.correlation_within(a, groups.float(), groups))
