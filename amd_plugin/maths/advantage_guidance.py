"""Advantage guidance: the fake score is conditioned on which samples failed, and the student is guided by the contrast.

    outcome      o = good with probability (1 + kappa a) / 2, else bad; none for a third of the samples
    fake score   ordinary denoising, F(x_t, o)
    direction    d = d_real - F(x_t, none) + gamma (F(x_t, good) - F(x_t, bad))

The contrast F(x_t, good) - F(x_t, bad) is sigma^2 / alpha times the gradient of log P(good | x_t) / P(bad | x_t). The student
climbs the log-odds of success at every noise level, for a black-box reward, without a gradient through reward or decoder. This
is classifier-free guidance with the outcome as the condition, on the student's own distribution (docs/how-it-works.md).
"""

import torch
from torch import Tensor

from amd_plugin.maths.operators import EVERYWHERE, Transform, Window, inside
from amd_plugin.maths.prediction import widen
from amd_plugin.maths.signals import Direction

NONE, BAD, GOOD = range(3)
OUTCOMES = ("none", "bad", "good")

KAPPA = 0.95  # below 1, so that the log-odds of the best and worst samples are finite
NONE_SHARE = 1 / 3  # of the samples, with which the fake score without an outcome is trained


def outcomes(advantage: Tensor, draws: Tensor, kappa: float = KAPPA, none_share: float = NONE_SHARE) -> Tensor:
    """The outcome of each sample that the fake score is trained with.

    Args:
        advantage: advantages [B] in [-1, 1].
        draws: uniform random numbers [B] in [0, 1).
        kappa: certainty of the outcome of a sample with advantage -1 or 1, in [0, 1).
        none_share: probability of `NONE`, in [0, 1).

    Returns:
        `NONE`, `BAD` or `GOOD` for each sample, [B] int64. All are `NONE` in a batch whose advantages are all 0, so that a
        reward that never differs trains no outcome at all. A single advantage of 0 gives either outcome with the same
        probability: without such samples the contrast around them would be exaggerated.

    Example:
        A good sample, whatever is drawn beyond the first third, and a failing one:

        >>> outcomes(torch.tensor([1.0, 1.0, -1.0]), torch.tensor([0.1, 0.6, 0.6]))
        tensor([0, 2, 1])
    """
    a = widen(advantage.detach())
    draws = (widen(draws) - none_share) / (1 - none_share)
    outcome = torch.where(draws < (1 + kappa * a) / 2, GOOD, BAD)
    return torch.where((draws < 0) | ~(a != 0).any(), NONE, outcome)


def log_odds(advantage: Tensor, kappa: float = KAPPA) -> Tensor:
    """``log P(good) / P(bad)`` [B] of samples with `advantage` [B], at noise level 0.

    Example:
        >>> log_odds(torch.tensor([-1.0, 0.0, 1.0]))
        tensor([-3.6636,  0.0000,  3.6636])
    """
    a = kappa * widen(advantage.detach())
    return torch.log1p(a) - torch.log1p(-a)


def guide_by_advantage(gamma: float | Tensor, window: Window = EVERYWHERE) -> Transform:
    """Adds the third term ``gamma (F_good - F_bad)`` to a direction whose signals have these predictions.

    Args:
        gamma: scale, at least 0: one for all samples or one for each [B]; 0 changes nothing. `Signals.advantage_factor`
            multiplies it.
        window: noise levels (low, high) outside which the term is 0, inclusive, fractions of the schedule as `Signals.sigma`.

    Raises:
        ValueError: when called on signals without `Signals.sigma`, for a window that is not open.

    Example:
        >>> from amd_plugin.maths.operators import chain, dmd
        >>> from amd_plugin.maths.signals import Signals
        >>> x0 = torch.zeros(1, 1)
        >>> signals = Signals(x0, real_cond=x0 + 2, real_uncond=None, fake=x0, fake_good=x0 + 0.25, fake_bad=x0 - 0.25)
        >>> chain(dmd(), guide_by_advantage(gamma=4.0))(signals).total()
        tensor([[4.]])
    """

    def transform(direction: Direction) -> Direction:
        signals = direction.signals
        contrast = signals.contrast()
        if contrast is None or (isinstance(gamma, float | int) and gamma == 0):
            return direction
        scaled = (signals.per_sample(gamma) if isinstance(gamma, Tensor) and gamma.dim() else gamma) * contrast
        if signals.advantage_factor is not None:
            scaled = signals.per_sample(signals.advantage_factor) * scaled
        if window != EVERYWHERE:
            if signals.sigma is None:
                raise ValueError("Signals.sigma: needed by a window over noise levels, got None")
            scaled = signals.per_sample(inside(signals.sigma, window)) * scaled
        return direction._replace(advance=scaled)

    return transform
