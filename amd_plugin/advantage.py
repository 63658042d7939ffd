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
    if squash == "clip":
        a = a.clamp(-limit, limit)
    elif squash == "tanh":
        a = limit * torch.tanh(a / limit)
    return torch.where(valid, a, 0.0)


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
