"""Differentiable rewards of samples, without the graph of decoder and rewards."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from amd_plugin.maths.prediction import widen


def linearised(score: Callable[[Tensor], Tensor], x0: Tensor) -> Tensor:
    """Rewards [B] of `x0` [B, ...], with their gradient with respect to `x0`; the graph of `score` is freed on return.

    A sample gets NaN and no gradient if its reward failed, in value or in gradient.

    Args:
        score: differentiable function of samples [B, ...] to rewards [B].
        x0: samples [B, ...], with or without a graph.
    """
    leaf = x0.detach().requires_grad_()
    with torch.enable_grad():
        reward = score(leaf)
    valid, slope = torch.isfinite(reward), torch.zeros_like(leaf)
    if reward.requires_grad:
        [gradient] = torch.autograd.grad(torch.where(valid, reward, 0.0).sum(), leaf, allow_unused=True)
        slope = torch.full_like(leaf, torch.nan) if gradient is None else gradient
    valid &= slope.flatten(1).isfinite().all(1)
    # Masked before the product, since 0 times a gradient that is NaN is NaN.
    slope = torch.where(valid.reshape(-1, *[1] * (x0.dim() - 1)), slope, 0.0)
    first_order = widen(slope * (x0 - x0.detach())).flatten(1).sum(1)
    return torch.where(valid, reward.detach(), torch.nan) + first_order
