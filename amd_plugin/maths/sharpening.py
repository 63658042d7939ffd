"""Repulsive Landscape Sharpening (2602.07345, section 3.3): the fake score fits failures harder, so it repels the student.

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


def sharpening_weights(advantage: Tensor, sharpening: float | Tensor, kind: Kind = "linear") -> Tensor:
    """Weights of the fake score's loss, larger for worse samples, mean 1.

    Args:
        advantage: advantages [B] of the whole batch over all ranks, so that the mean is taken over all of it.
        sharpening: lambda in [0, 40], of all samples or [B] of each; 0 gives exactly 1 everywhere.
        kind: ``linear`` is 1 - lambda a (the paper's, as we read it), ``exponential`` is exp(-lambda a). A linear weight
            below 0, possible where lambda a > 1, would train the fake score to be wrong there and counts as 0.

    Returns:
        [B], fp32 or wider, >= 0, mean 1, no grad.

    Raises:
        ValueError: for a sharpening out of range or another kind.

    Example:
        A failing sample, an average one and a good one:

        >>> sharpening_weights(torch.tensor([-1.0, 0.0, 1.0]), sharpening=0.5)
        tensor([1.5000, 1.0000, 0.5000])
    """
    of_all = torch.as_tensor(sharpening)
    if not bool(((of_all >= 0) & (of_all <= LARGEST)).all()):
        raise ValueError(f"sharpening: must be in [0, {LARGEST}], got {sharpening}")
    if kind not in ("linear", "exponential"):
        raise ValueError(f"kind: must be 'linear' or 'exponential', got {kind!r}")
    a = widen(advantage.detach())
    # A number is no copy to a GPU, and a copy need not be waited for.
    tilted = a * (sharpening.to(a, non_blocking=True) if isinstance(sharpening, Tensor) else sharpening)
    weights = (1 - tilted).clamp(min=0) if kind == "linear" else torch.exp(-tilted)
    mean = weights.mean()
    return torch.where(mean > 0, weights / mean, torch.ones_like(weights))


def implied_tilt(advantage: Tensor, sharpening: float | Tensor, kind: Kind = "linear") -> tuple[Tensor, Tensor]:
    """How far the fixed point ``q* = (p_teacher / w) / Z`` is from the teacher, for a batch of samples.

    Args:
        advantage: advantages [B] of the whole batch over all ranks.
        sharpening: lambda in [0, 40], of all samples or [B] of each.
        kind: form of the weights w, see `sharpening_weights`.

    Returns:
        (ratio, divergence), both scalars. `ratio` is the largest factor ``1 / w`` on a sample's density over the smallest,
        infinite where a weight is 0. `divergence` is ``KL(q* || p_teacher)`` in nats if the batch were the teacher's samples.

    Raises:
        ValueError: for a sharpening out of range or another kind.

    Example:
        The exponential form tilts by exp(lambda a), so advantages of -1 and 1 are e^2 apart at lambda = 1:

        >>> ratio, divergence = implied_tilt(torch.tensor([-1.0, 1.0]), sharpening=1.0, kind="exponential")
        >>> print(f"{ratio:.3f} {divergence:.3f}")
        7.389 0.328
        >>> implied_tilt(torch.tensor([-1.0, 1.0]), sharpening=0.0)
        (tensor(1.), tensor(0.))
    """
    tilt = 1 / sharpening_weights(advantage, sharpening, kind)
    normalised = tilt / tilt.mean()
    return tilt.max() / tilt.min(), torch.special.xlogy(normalised, normalised).mean()
