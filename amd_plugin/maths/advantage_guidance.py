"""Advantage guidance: the fake score is conditioned on which samples failed, and the student is guided by the contrast.

    outcome      o = good with probability (1 + kappa a) / 2, else bad; none for a third of the samples
    fake score   ordinary denoising, F(x_t, o)
    direction    d = d_real - F(x_t, none) + gamma P(bad | a) (F(x_t, good) - F(x_t, bad)),    P(bad | a) = (1 - kappa a) / 2

The contrast F(x_t, good) - F(x_t, bad) is sigma^2 / alpha times the gradient of log P(good | x_t) / P(bad | x_t). Times P(bad),
whose mean over the samples at x_t is P(bad | x_t), it is the gradient of log P(good | x_t): the student climbs the probability
of success at every noise level, for a black-box reward, without a gradient through reward or decoder. Samples that succeed stay
where they are. This is classifier-free guidance with the outcome as the condition, on the student's own distribution
(docs/how-it-works.md).
"""

import torch
from torch import Tensor

from amd_plugin.maths.operators import Transform
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


def failure_probability(advantage: Tensor, kappa: float = KAPPA) -> Tensor:
    """``P(bad | a)`` [B] of samples with `advantage` [B] in [-1, 1].

    Example:
        >>> failure_probability(torch.tensor([-1.0, 0.0, 1.0]))
        tensor([0.9750, 0.5000, 0.0250])
    """
    return (1 - kappa * widen(advantage.detach())) / 2


def guide_by_advantage(gamma: float) -> Transform:
    """Adds the third term ``gamma P(bad | a) (F_good - F_bad)`` to a direction whose signals have these predictions.

    Without advantages, every sample counts as one that is as likely to be good as to be bad.

    Args:
        gamma: scale, at least 0; 0 changes nothing. `Signals.advantage_factor` multiplies it per sample.

    Example:
        >>> from amd_plugin.maths.operators import chain, dmd
        >>> from amd_plugin.maths.signals import Signals
        >>> x0 = torch.zeros(1, 1)
        >>> signals = Signals(x0, real_cond=x0 + 2, real_uncond=None, fake=x0, fake_good=x0 + 0.25, fake_bad=x0 - 0.25)
        >>> chain(dmd(), guide_by_advantage(gamma=4.0))(signals).total()
        tensor([[3.]])
    """

    def transform(direction: Direction) -> Direction:
        signals = direction.signals
        contrast = signals.contrast()
        if contrast is None or gamma == 0:
            return direction
        a = torch.zeros(len(contrast), device=contrast.device) if signals.advantage is None else signals.advantage
        scale = gamma * failure_probability(a)
        if signals.advantage_factor is not None:
            scale = scale * signals.advantage_factor.to(scale)
        return direction._replace(advance=signals.per_sample(scale) * contrast)

    return transform
