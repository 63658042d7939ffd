"""Repulsive Landscape Sharpening (2602.07345, section 3.3): the fake score learns failures harder, so it repels from them.

With weights w the fake score is the exact denoiser of q w, hence DMD's fixed point is ``q* = (p_teacher / w) / Z``. The
exponential form gives ``q* ~ p_teacher exp(sharpening a)``, the optimum of ``E_q[sharpening a] - KL(q || p_teacher)``: a
reward-tilted teacher from a black-box reward. The linear form is its first order, with a tilt unbounded at sharpening 1.
"""

from typing import Literal

import torch
from torch import Tensor

from amd_plugin.maths.prediction import widen

Kind = Literal["linear", "exponential"]

LARGEST = 40  # exp(40) still leaves room for a mean over any batch in fp32


def sharpening_weights(advantage: Tensor, sharpening: float, kind: Kind = "linear") -> Tensor:
    """Weights of the fake score's loss, larger for worse samples, mean 1.

    Args:
        advantage: [B]; the joined batch where there are several ranks, so that the mean is taken over all of it.
        sharpening: lambda in [0, 40]; 0 gives exactly 1 everywhere.
        kind: ``linear`` is 1 - lambda a (the paper's, as we read it), ``exponential`` is exp(-lambda a). A linear weight
            below 0, possible where lambda a > 1, would teach the fake score to be wrong there and counts as 0.

    Returns:
        [B], fp32 or wider, >= 0, mean 1, no grad.

    Raises:
        ValueError: for a sharpening out of range or another kind.
    """
    if not 0 <= sharpening <= LARGEST:
        raise ValueError(f"sharpening: must be in [0, {LARGEST}], got {sharpening}")
    if kind not in ("linear", "exponential"):
        raise ValueError(f"kind: must be 'linear' or 'exponential', got {kind!r}")
    a = widen(advantage.detach())
    weights = (1 - sharpening * a).clamp(min=0) if kind == "linear" else torch.exp(-sharpening * a)
    mean = weights.mean()
    return torch.where(mean > 0, weights / mean, torch.ones_like(weights))


def implied_tilt(advantage: Tensor, sharpening: float, kind: Kind = "linear") -> tuple[Tensor, Tensor]:
    """How far the fixed point ``q* = (p_teacher / w) / Z`` is from the teacher, for a batch with these advantages [B].

    Returns:
        (ratio, divergence), both scalars: the largest over the smallest factor ``1 / w`` by which the density of a sample is
        tilted, infinite where a weight is 0; and ``KL(q* || p_teacher)`` in nats if the batch were the teacher's own samples.
    """
    tilt = 1 / sharpening_weights(advantage, sharpening, kind)
    normalised = tilt / tilt.mean()
    return tilt.max() / tilt.min(), torch.special.xlogy(normalised, normalised).mean()
