"""Noise levels as places on a ladder, for a schedule whose noise is not spread evenly over its levels.

EDM's times are standard deviations from 0.002 to 80, and half of its steps lie below 2.6: shares of 80 would nearly all be low.
"""

from __future__ import annotations

import torch
from torch import Tensor


def position(levels: Tensor, ladder: Tensor) -> Tensor:
    """The places [B] of `levels` [B] on a `ladder` [N] of rising levels: 0 at its foot, 1 at its top, linear between rungs."""
    return _between(levels, ladder, _even(ladder))


def level(positions: Tensor, ladder: Tensor) -> Tensor:
    """The levels [B] at places `positions` [B] on a `ladder` [N], the inverse of `position`."""
    return _between(positions, _even(ladder), ladder)


def _even(ladder: Tensor) -> Tensor:
    return torch.linspace(0, 1, len(ladder), dtype=torch.float64)


def _between(values: Tensor, own: Tensor, others: Tensor) -> Tensor:
    """What lies among `others` [N] where `values` [B] lie among `own` [N]."""
    own, others = (rungs.to(values.device, torch.float64) for rungs in (own, others))
    upper = torch.searchsorted(own, values.double().contiguous()).clamp(1, len(own) - 1)
    share = ((values - own[upper - 1]) / (own[upper] - own[upper - 1])).clamp(0, 1)
    return torch.lerp(others[upper - 1], others[upper], share).to(values.dtype)
