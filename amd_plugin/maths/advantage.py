"""How well a sample did compared with its own group: AMD's measure of where the student fails.

Eq. 12 of the paper (2602.07345), with the names and constants of TRL's GRPO (`scale_rewards`, Bessel's correction, 1e-4).
"""

from typing import Literal

import torch
from torch import Tensor

from amd_plugin.maths.prediction import widen

Scale = Literal["group", "batch", "none"]
Aggregation = Literal["sum_then_normalize", "normalize_then_sum"]
Squash = Literal["clip", "tanh"] | None

EPS = 1e-4
LARGEST = 1e15  # of a reward: the squares of more, summed over a batch, are infinite in fp32


def group_advantage(
    reward: Tensor,
    groups: Tensor,
    scale: Scale = "group",
    squash: Squash = "clip",
    limit: float = 1.0,
    std_floor: float | Tensor = 0.0,
    tolerance: float = 0.0,
) -> Tensor:
    """``a_i = squash(shrink((r_i - mean_g) / (max(std, std_floor) + 1e-4)))`` for each sample i of group g.

    A reward that is NaN, infinite or beyond 1e15 stands for a failed one: it counts in no mean or spread and gets advantage 0.
    A group whose rewards are all equal gets exactly 0. With several ranks, gather the rewards first: groups may span ranks.

    Args:
        reward: rewards [B], higher is better, any unit.
        groups: prompt of each sample [B], as equal numbers for equal prompts, in any order.
        scale: spread to divide by, that of the ``group`` or of the ``batch``; ``none`` does not divide.
        squash: ``clip`` to [-limit, limit] (the paper), ``tanh`` for ``limit * tanh(a / limit)``, or None.
        limit: largest absolute advantage, > 0.
        std_floor: smallest spread to divide by, in reward units, >= 0. Where a group agrees to within noise, dividing by its
            own spread turns noise into a sign function; a floor at a fraction of the usual spread prevents it.
        tolerance: largest difference that counts as none, see `settled`.

    Returns:
        [B], fp32 or wider, finite, no grad.

    Raises:
        ValueError: for shapes that do not match or unknown names.

    Example:
        Two prompts with three samples each; one sample of the second prompt has a reward that failed:

        >>> reward = torch.tensor([0.0, 1.0, 2.0, 5.0, 7.0, torch.nan])
        >>> group_advantage(reward, groups=torch.tensor([0, 0, 0, 1, 1, 1]), squash=None)
        tensor([-0.9999,  0.0000,  0.9999, -0.7071,  0.7071,  0.0000])
    """
    if reward.dim() != 1 or groups.shape != reward.shape:
        raise ValueError(f"reward and groups: must both be [B], got {tuple(reward.shape)} and {tuple(groups.shape)}")
    if scale not in ("group", "batch", "none"):
        raise ValueError(f"scale: must be 'group', 'batch' or 'none', got {scale!r}")
    if squash not in ("clip", "tanh", None):
        raise ValueError(f"squash: must be 'clip', 'tanh' or None, got {squash!r}")
    if not limit > 0:
        raise ValueError(f"limit: must be above 0, got {limit}")

    centred, spread, valid = _statistics(reward, groups)
    if scale == "batch":
        answered = widen(reward.detach())[valid]
        spread = answered.std() if len(answered) > 1 else torch.zeros_like(spread)
    a = centred
    if scale != "none":
        if not torch.is_tensor(std_floor) and not std_floor >= 0:
            raise ValueError(f"std_floor: must be 0 or above, got {std_floor}")
        floor = torch.as_tensor(std_floor, dtype=centred.dtype, device=centred.device)
        a = centred / (torch.maximum(spread, floor) + EPS)
    return torch.where(valid, settled(a, squash, limit, tolerance), 0.0)


def settled(a: Tensor, squash: Squash, limit: float, tolerance: float = 0.0) -> Tensor:
    """Advantages `a` [B] with differences up to `tolerance` removed, limited to [-limit, limit].

    Args:
        a: centred advantages [B].
        squash: ``clip`` (the paper), ``tanh`` for ``limit * tanh(a / limit)``, or None for no limit.
        limit: largest absolute advantage, > 0.
        tolerance: threshold >= 0 of a soft shrinkage: smaller values become 0, the others move towards 0 by it.

    Raises:
        RuntimeError: of torch, for a tolerance below 0.

    Example:
        >>> settled(torch.tensor([-3.0, 0.2, 0.7]), squash="clip", limit=1.0, tolerance=0.5)
        tensor([-1.0000,  0.0000,  0.2000])
    """
    a = torch.nn.functional.softshrink(a, tolerance)
    if squash == "clip":
        return a.clamp(-limit, limit)
    return limit * torch.tanh(a / limit) if squash == "tanh" else a


def aggregate(
    rewards: Tensor, groups: Tensor, weights: Tensor, aggregation: Aggregation = "sum_then_normalize"
) -> tuple[Tensor, Tensor]:
    """Several rewards as one, and the groups to compare it in: ``group_advantage(*aggregate(...))``.

    ``sum_then_normalize``: ``sum_k w_k r_k``, compared within each prompt's group. The reward with the widest spread
    dominates. If any reward failed on a sample, the sum is NaN: a missing term would count as 0, which may be the best value.

    ``normalize_then_sum`` (GDPO): ``sum_k w_k (r_k - mean_g) / (std_g + 1e-4)``, compared within the whole batch, so that each
    reward counts by its weight, whatever its unit. A reward that failed on a sample is left out there; the sum is NaN where all
    of them failed.

    Names, constants and the treatment of missing values in the second form are TRL's (`multi_objective_aggregation`); in the
    first TRL leaves missing values out of the sum.

    Args:
        rewards: rewards [B, K] of the whole batch over all ranks, higher is better; NaN or infinite for a failed one.
        groups: prompt of each sample [B], as equal numbers for equal prompts.
        weights: weight of each reward [K]; one of weight 0 has no effect, and neither have its failures.
        aggregation: one of the two forms above.

    Returns:
        (reward [B] with NaN for failed samples, groups [B]).

    Raises:
        ValueError: for shapes that do not match or an unknown name.

    Example:
        The first reward has twice the weight, the second a larger unit, which decides the plain sum only:

        >>> rewards, groups, weights = torch.tensor([[0.0, 9.0], [1.0, 0.0]]), torch.tensor([0, 0]), torch.tensor([2.0, 1.0])
        >>> aggregate(rewards, groups, weights)[0]
        tensor([9., 2.])
        >>> aggregate(rewards, groups, weights, "normalize_then_sum")[0]
        tensor([-0.7069,  0.7069])
    """
    if rewards.dim() != 2 or groups.shape != rewards.shape[:1] or weights.shape != rewards.shape[1:]:
        got = f"got {tuple(rewards.shape)}, {tuple(groups.shape)} and {tuple(weights.shape)}"
        raise ValueError(f"rewards, groups and weights: must be [B, K], [B] and [K], {got}")
    if aggregation not in ("sum_then_normalize", "normalize_then_sum"):
        raise ValueError(f"aggregation: must be 'sum_then_normalize' or 'normalize_then_sum', got {aggregation!r}")
    rewards, weights = widen(rewards.detach())[:, weights != 0], weights[weights != 0]
    weights = weights.to(rewards)
    if aggregation == "sum_then_normalize":
        finite = torch.isfinite(rewards).all(1)
        return torch.where(finite, (rewards * weights).sum(1), torch.nan), groups
    total, answered = torch.zeros_like(rewards[:, :1].sum(1)), torch.isfinite(rewards).any(1)
    for weight, reward in zip(weights, rewards.unbind(1), strict=True):
        centred, spread, _ = _statistics(reward, groups)
        total = total + weight * centred / (spread + EPS)
    return torch.where(answered | (len(weights) == 0), total, torch.nan), torch.zeros_like(groups)


def quiet_share(values: Tensor, groups: Tensor) -> Tensor:
    """Share of samples in groups [B] all of whose `values` [B] are 0: such a group carries no signal.

    Example:
        >>> quiet_share(torch.tensor([0.0, 0.0, -0.5, 0.5]), groups=torch.tensor([0, 0, 1, 1]))
        tensor(0.5000)
    """
    members, index = torch.unique(groups, return_inverse=True)
    largest = torch.zeros(len(members), dtype=values.dtype, device=values.device).scatter_reduce(0, index, values.abs(), "amax")
    return (largest[index] == 0).float().mean()


def group_std(reward: Tensor, groups: Tensor) -> Tensor:
    """Spread of each sample's group [B], with Bessel's correction; 0 for groups with fewer than two finite rewards.

    Example:
        >>> group_std(torch.tensor([0.0, 1.0, 2.0, 5.0]), groups=torch.tensor([0, 0, 0, 1]))
        tensor([1., 1., 1., 0.])
    """
    return _statistics(reward, groups)[1]


def scored(reward: Tensor) -> Tensor:
    """Whether each reward [B] is one, bool [B]: what is NaN, infinite or beyond `LARGEST` stands for a failed one.

    Example:
        >>> scored(torch.tensor([1.0, float("nan"), 3e38]))
        tensor([ True, False, False])
    """
    return reward.abs() <= LARGEST


def _statistics(reward: Tensor, groups: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For each sample [B]: its reward minus its group's mean, the group's spread, and whether it has a reward.

    The difference is exactly 0 where the group's rewards are all equal, and where there is none.
    """
    reward = widen(reward.detach())
    valid = scored(reward)
    members, index = torch.unique(groups, return_inverse=True)
    empty = torch.zeros(len(members), dtype=reward.dtype, device=reward.device)
    count = empty.index_add(0, index, valid.to(reward.dtype))
    # The division would amplify rounding in the mean of equal rewards: measure from the group's minimum instead.
    low = (empty + torch.inf).scatter_reduce(0, index, torch.where(valid, reward, torch.inf), "amin")
    above = torch.where(valid, reward - low[index], 0.0)
    mean = empty.index_add(0, index, above) / count.clamp(min=1)
    centred = torch.where(valid, above - mean[index], 0.0)
    variance = empty.index_add(0, index, centred.square()) / (count - 1).clamp(min=1)
    return centred, variance.sqrt()[index], valid
