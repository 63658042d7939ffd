"""How well a sample did against its own group: the sensor that tells AMD where the student fails.

Eq. 12 of the paper, with the names and constants of TRL's GRPO (`scale_rewards`, Bessel's correction, 1e-4).
"""

from typing import Literal

import torch
from torch import Tensor

from amd_plugin.prediction import widen

Scale = Literal["group", "batch", "none"]
Squash = Literal["clip", "tanh"] | None

EPS = 1e-4


def group_advantage(
    reward: Tensor,
    groups: Tensor,
    scale: Scale = "group",
    squash: Squash = "clip",
    limit: float = 1.0,
    std_floor: float | Tensor = 0.0,
) -> Tensor:
    """``a_i = squash((r_i - mean_g) / (max(std, std_floor) + 1e-4))`` for each sample i of group g.

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
    if limit <= 0:
        raise ValueError(f"limit: must be above 0, got {limit}")

    reward = widen(reward.detach())
    valid = torch.isfinite(reward)
    centred = _centre(reward, groups, valid)
    if scale == "group":
        spread = group_std(reward, groups)
    else:
        kept = reward[valid]
        spread = kept.std() if scale == "batch" and len(kept) > 1 else torch.zeros_like(reward)
    a = centred
    if scale != "none":
        floor = torch.as_tensor(std_floor, dtype=reward.dtype, device=reward.device)
        a = centred / (torch.maximum(spread, floor) + EPS)
    if squash == "clip":
        a = a.clamp(-limit, limit)
    elif squash == "tanh":
        a = limit * torch.tanh(a / limit)
    return torch.where(valid, a, torch.zeros_like(a))


def group_std(reward: Tensor, groups: Tensor) -> Tensor:
    """Spread of each sample's group [B], with Bessel's correction; 0 for groups with fewer than two finite rewards."""
    reward = widen(reward.detach())
    valid = torch.isfinite(reward)
    squares, count = _group_sum(_centre(reward, groups, valid) ** 2, groups, valid)
    return (squares / (count - 1).clamp(min=1)).sqrt()


def _centre(reward: Tensor, groups: Tensor, valid: Tensor) -> Tensor:
    """reward - mean of its group; exactly 0 where the group's finite rewards are all equal, and where not valid."""
    _, index = torch.unique(groups, return_inverse=True)
    # Rounding in the mean of equal rewards would be blown up by the division: count from the group's minimum instead.
    high = torch.where(valid, reward, torch.inf)
    low = torch.full((int(index.max()) + 1,), torch.inf, dtype=reward.dtype, device=reward.device)
    low = low.scatter_reduce(0, index, high, "amin")[index]
    above = torch.where(valid, reward - low, torch.zeros_like(reward))
    total, count = _group_sum(above, groups, valid)
    return torch.where(valid, above - total / count.clamp(min=1), torch.zeros_like(reward))


def _group_sum(values: Tensor, groups: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of the valid `values` and their count, over each sample's group; both [B]."""
    _, index = torch.unique(groups, return_inverse=True)
    zeros = torch.zeros(int(index.max()) + 1, dtype=values.dtype, device=values.device)
    total = zeros.index_add(0, index, torch.where(valid, values, torch.zeros_like(values)))
    count = zeros.index_add(0, index, valid.to(values.dtype))
    return total[index], count[index]
