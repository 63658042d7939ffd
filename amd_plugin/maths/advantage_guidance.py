"""Advantage guidance: the fake score is conditioned on which samples failed, and the student is guided by the contrast.

    outcome      o = good with probability (1 + kappa a) / 2, else bad; none for a third of the samples
    fake score   ordinary denoising, F(x_t, o)
    direction    d = d_real - F(x_t, none) + gamma (F(x_t, good) - F(x_t, bad))

The contrast F(x_t, good) - F(x_t, bad) is sigma^2 / alpha times the gradient of log P(good | x_t) / P(bad | x_t). So the
student climbs the log-odds of success at every noise level, for a black-box reward, without a gradient through reward or
decoder, and samples that nobody has scored climb them too. This is classifier-free guidance with the outcome as the condition,
on the student's own distribution (docs/how-it-works.md).
"""

import torch
from torch import Tensor

from amd_plugin.maths.operators import Transform
from amd_plugin.maths.prediction import widen
from amd_plugin.maths.signals import Direction

NONE, BAD, GOOD = range(3)
OUTCOMES = ("none", "bad", "good")

KAPPA = 0.95  # below 1, so that the log-odds of the best and worst samples are finite
ROUNDING = 1e-10  # of squares: deviations below this are those of a picture of one colour
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
    """``log P(good | a) / P(bad | a)`` [B] of samples with `advantage` [B] in [-1, 1].

    Example:
        >>> log_odds(torch.tensor([-1.0, 0.0, 1.0]))
        tensor([-3.6636,  0.0000,  3.6636])
    """
    return 2 * torch.atanh(kappa * widen(advantage.detach()))


def unsaturated(contrast: Tensor, prediction: Tensor) -> Tensor:
    """The contrast without what only tints or saturates: its mean in each channel, and its part along the prediction.

    A fake score learns first how bright and how coloured successes are on average, of which most is chance, and guidance adds
    it to every sample alike. The mean of each channel is that part. What lies along the prediction's deviations from its own
    means scales them up: more saturated colours, and no other picture. Adaptive projected guidance (2410.02416) takes away the
    part along the prediction itself. Points have no places, so a contrast of points [B, D] is returned as it is.

    Args:
        contrast: contrast of pictures or videos [B, C, ...].
        prediction: prediction of x0 from the same x_t, of the contrast's shape.

    Example:
        A picture of one channel: to be brighter everywhere, or where it is bright already, is taken away.

        >>> picture = torch.tensor([[[2.0, 0.0, 0.0]]])
        >>> unsaturated(torch.tensor([[[0.5, 0.5, 0.5]]]), picture)
        tensor([[[0., 0., 0.]]])
        >>> unsaturated(torch.tensor([[[0.5, 0.5, -0.5]]]), picture)
        tensor([[[ 0.0000,  0.5000, -0.5000]]])
    """
    if contrast.dim() < 3:
        return contrast
    flat, places = contrast.flatten(2), prediction.flatten(2)
    varying, deviations = flat - flat.mean(2, keepdim=True), places - places.mean(2, keepdim=True)
    least = torch.finfo(places.dtype).tiny + ROUNDING * places.square().sum((1, 2), keepdim=True)
    share = (varying * deviations).sum((1, 2), keepdim=True) / deviations.square().sum((1, 2), keepdim=True).clamp(min=least)
    return (varying - share * deviations).reshape(contrast.shape)


def guide_by_advantage(gamma: float) -> Transform:
    """Adds the third term ``gamma (F_good - F_bad)`` to a direction whose signals have these predictions.

    Of pictures and videos, what tints or saturates is left out of the contrast, see `unsaturated`.

    Args:
        gamma: scale, at least 0; 0 changes nothing. `Signals.advantage_factor` multiplies it per sample.

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
        if contrast is None or gamma == 0:
            return direction
        advance = gamma * unsaturated(contrast, widen(signals.fake.detach()))
        if signals.advantage_factor is not None:
            advance = signals.per_sample(signals.advantage_factor) * advance
        return direction._replace(advance=advance)

    return transform
