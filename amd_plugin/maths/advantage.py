"""How well a sample did against its own group: the sensor that tells AMD where the student fails.

Eq. 12 of the paper, with the names and constants of TRL's GRPO (`scale_rewards`, Bessel's correction, 1e-4).
"""

from typing import Literal

import torch
from torch import Tensor

from amd_plugin.maths.prediction import widen

Scale = Literal["group", "batch", "none"]
Aggregation = Literal["sum_then_normalize", "normalize_then_sum"]
Squash = Literal["clip", "tanh"] | None

EPS = 1e-4


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

    A reward that is NaN or infinite stands for a failed one: it counts in no mean or spread and gets advantage 0. A group
    whose rewards are all equal gets exactly 0. On several ranks, call it on the joined rewards: groups may span ranks.

    Args:
        reward: [B], higher is better, any unit.
        groups: [B], the same number for samples of the same prompt, in any order.
        scale: divide by the spread of the group, of the batch, or not at all.
        squash: ``clip`` to [-limit, limit] (the paper), ``limit * tanh(a / limit)``, or None.
        limit: > 0.
        std_floor: smallest spread to divide by, in reward units. Where a group agrees to within noise, dividing by its own
            spread turns noise into a sign function; a floor of a fraction of the usual spread prevents it.
        tolerance: see `settled`.

    Returns:
        [B], fp32 or wider, finite, no grad.

    Raises:
        ValueError: for shapes that do not match or unknown names.
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
        kept = widen(reward.detach())[valid]
        spread = kept.std() if len(kept) > 1 else torch.zeros_like(spread)
    a = centred
    if scale != "none":
        if not torch.is_tensor(std_floor) and not std_floor >= 0:
            raise ValueError(f"std_floor: must be 0 or above, got {std_floor}")
        floor = torch.as_tensor(std_floor, dtype=centred.dtype, device=centred.device)
        a = centred / (torch.maximum(spread, floor) + EPS)
    return torch.where(valid, settled(a, squash, limit, tolerance), 0.0)


def settled(a: Tensor, squash: Squash, limit: float, tolerance: float = 0.0) -> Tensor:
    """`a` [B] without what is too small to matter, and within [-limit, limit].

    Args:
        squash: ``clip``, the paper's; ``tanh``, limit * tanh(a / limit); or None, as it is.
        tolerance: >= 0; ``shrink`` sets differences of at most this to 0 and shortens the rest by it.
    """
    a = torch.nn.functional.softshrink(a, tolerance)
    if squash == "clip":
        return a.clamp(-limit, limit)
    return limit * torch.tanh(a / limit) if squash == "tanh" else a


def aggregate(
    rewards: Tensor, groups: Tensor, weights: Tensor, how: Aggregation = "sum_then_normalize"
) -> tuple[Tensor, Tensor]:
    """Several rewards as one, and the groups to compare it in: ``group_advantage(*aggregate(...))``.

    ``sum_then_normalize``: ``sum_k w_k r_k``, compared within each prompt's group. The reward with the widest spread decides. A
    sample that any of them failed on is a failed one: a missing term would count as a reward of 0, which may be the best.

    ``normalize_then_sum`` (GDPO): ``sum_k w_k (r_k - mean_g) / (std_g + 1e-4)``, compared within the whole batch, so that each
    reward has the say of its weight whatever its unit. One that failed on a sample has no say there; a sample that all of them
    failed on is a failed one.

    Names, constants and the treatment of missing values in the second form are TRL's (`multi_objective_aggregation`); in the
    first TRL leaves missing values out of the sum.

    Args:
        rewards: [B, K], higher is better; NaN or infinite for a failed one.
        groups: [B], the same number for samples of the same prompt.
        weights: [K]; a reward of weight 0 counts for nothing, its failures included.

    Returns:
        (reward [B] with NaN for failed samples, groups [B]), for the joined batch of all ranks like the arguments.

    Raises:
        ValueError: for shapes that do not match or an unknown name.
    """
    if rewards.dim() != 2 or groups.shape != rewards.shape[:1] or weights.shape != rewards.shape[1:]:
        got = f"got {tuple(rewards.shape)}, {tuple(groups.shape)} and {tuple(weights.shape)}"
        raise ValueError(f"rewards, groups and weights: must be [B, K], [B] and [K], {got}")
    if how not in ("sum_then_normalize", "normalize_then_sum"):
        raise ValueError(f"how: must be 'sum_then_normalize' or 'normalize_then_sum', got {how!r}")
    rewards, weights = widen(rewards.detach())[:, weights != 0], weights[weights != 0]
    weights = weights.to(rewards)
    if how == "sum_then_normalize":
        finite = torch.isfinite(rewards).all(1)
        return torch.where(finite, (rewards * weights).sum(1), torch.nan), groups
    total, spoken = torch.zeros_like(rewards[:, :1].sum(1)), torch.isfinite(rewards).any(1)
    for weight, reward in zip(weights, rewards.unbind(1), strict=True):
        centred, spread, _ = _statistics(reward, groups)
        total = total + weight * centred / (spread + EPS)
    return torch.where(spoken | (len(weights) == 0), total, torch.nan), torch.zeros_like(groups)


def quiet_share(values: Tensor, groups: Tensor) -> Tensor:
    """Share of samples in groups [B] all of whose `values` [B] are 0: such a group says nothing about its samples."""
    members, index = torch.unique(groups, return_inverse=True)
    loudest = torch.zeros(len(members), dtype=values.dtype, device=values.device).scatter_reduce(0, index, values.abs(), "amax")
    return (loudest[index] == 0).float().mean()


def group_std(reward: Tensor, groups: Tensor) -> Tensor:
    """Spread of each sample's group [B], with Bessel's correction; 0 for groups with fewer than two finite rewards."""
    return _statistics(reward, groups)[1]


def _statistics(reward: Tensor, groups: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For each sample, all [B]: reward - mean of its group, the group's spread, and whether its reward is finite.

    The first is exactly 0 where the group's finite rewards are all equal, and where the reward is not finite.
    """
    reward = widen(reward.detach())
    valid = torch.isfinite(reward)
    members, index = torch.unique(groups, return_inverse=True)
    empty = torch.zeros(len(members), dtype=reward.dtype, device=reward.device)
    count = empty.index_add(0, index, valid.to(reward.dtype))
    # Rounding in the mean of equal rewards would be blown up by the division: count from the group's minimum instead.
    low = (empty + torch.inf).scatter_reduce(0, index, torch.where(valid, reward, torch.inf), "amin")
    above = torch.where(valid, reward - low[index], 0.0)
    mean = empty.index_add(0, index, above) / count.clamp(min=1)
    centred = torch.where(valid, above - mean[index], 0.0)
    variance = empty.index_add(0, index, centred.square()) / (count - 1).clamp(min=1)
    return centred, variance.sqrt()[index], valid
