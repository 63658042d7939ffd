"""Confidence intervals by bootstrap: percentiles of a mean, or a spread around a statistic that resampling would bias.

Samples of one prompt are correlated. So prompts are resampled instead of samples, wherever the prompts are themselves a sample.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from amd_plugin.randomness import generator

RESAMPLES, LEVEL = 2000, 0.95


class Interval(NamedTuple):
    """A value with its confidence interval."""

    value: float
    low: float
    high: float


def mean_interval(values: Tensor, groups: Tensor | None = None, *, seed: int, key: str, level: float = LEVEL) -> Interval:
    """The mean of finite `values`, the others left out, with percentiles of the means of resampled groups.

    Args:
        values: values [N].
        groups: group [N] of each value; by default each value is a group of its own.
        seed: seed of the resampling.
        key: name of the values, which keys the resampling.
        level: coverage of the interval, in (0, 1).

    Returns:
        The mean and its interval; all NaN without finite values, and an interval of NaN for a single group.
    """
    valid = values.isfinite()
    values = values[valid].double()
    owners = torch.arange(len(values)) if groups is None else torch.unique(groups[valid], return_inverse=True)[1]
    if not len(values):
        return Interval(torch.nan, torch.nan, torch.nan)
    count = int(owners.max()) + 1
    sums = torch.zeros(count, dtype=torch.float64).index_add_(0, owners, values)
    sizes = torch.bincount(owners, minlength=count).double()
    value = values.mean().item()
    if count < 2:
        return Interval(value, torch.nan, torch.nan)
    draws = generator(seed, "bootstrap", key)
    means, size = [], max(1, 1_000_000 // count)  # resamples in parts: all at once would take RESAMPLES x N of memory
    for start in range(0, RESAMPLES, size):
        drawn = torch.randint(count, (min(size, RESAMPLES - start), count), generator=draws)
        means.append(sums[drawn].sum(1) / sizes[drawn].sum(1))
    tail = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = torch.cat(means).quantile(tail).tolist()
    return Interval(value, low, high)


def spread_interval(
    statistic: Callable[[Tensor], float], groups: Tensor, *, seed: int, key: str, resamples: int = 100, level: float = LEVEL
) -> Interval:
    """A statistic of a set, plus and minus a normal quantile of its standard deviation over resampled sets.

    Repeated samples shift distances between sets, so percentiles would not contain the value. Their spread is right to first
    order.

    Args:
        statistic: function of row numbers [N], possibly repeated.
        groups: group [N] of each row.
        seed: seed of the resampling.
        key: name of the statistic, which keys the resampling.
        resamples: number of resampled sets.
        level: coverage of the interval, in (0, 1).

    Returns:
        The value and its interval; an interval of NaN for a single group.
    """
    owners = torch.unique(groups, return_inverse=True)[1]
    members = [(owners == index).nonzero()[:, 0] for index in range(int(owners.max()) + 1)]
    value = statistic(torch.arange(len(groups)))
    if len(members) < 2:
        return Interval(value, torch.nan, torch.nan)
    draws = generator(seed, "bootstrap", key)
    resampled = torch.empty(resamples, dtype=torch.float64)
    for index in range(resamples):
        drawn = torch.randint(len(members), (len(members),), generator=draws)
        resampled[index] = statistic(torch.cat([members[i] for i in drawn.tolist()]))
    reach = torch.special.ndtri(torch.tensor((1 + level) / 2, dtype=torch.float64)).item() * resampled.std().item()
    return Interval(value, value - reach, value + reach)
