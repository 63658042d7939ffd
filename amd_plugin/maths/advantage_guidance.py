"""Advantage guidance: the fake score is conditioned on which samples failed, and the student is guided by the contrast.

    outcome      o = good with probability (1 + kappa a) / 2, else bad; none for a third of the samples
    fake score   ordinary denoising, F(x_t, o)
    direction    d = d_real - F(x_t, none) + gamma (F(x_t, good) - F(x_t, bad))

The contrast F(x_t, good) - F(x_t, bad) is sigma^2 / alpha times the gradient of log P(good | x_t) / P(bad | x_t). So the
student climbs the log-odds of success at every noise level, for a black-box reward, without a gradient through reward or
decoder, and samples that nobody has scored climb them too. This is classifier-free guidance with the outcome as the condition,
on the student's own distribution (docs/how-it-works.md). Of pictures and videos, what only tints or saturates is left out.
"""

import torch
from torch import Tensor

from amd_plugin.maths.operators import Transform
from amd_plugin.maths.prediction import widen
from amd_plugin.maths.signals import Direction, Signals

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
    """``log P(good | a) / P(bad | a)`` [B] of samples with `advantage` [B] in [-1, 1].

    Example:
        >>> log_odds(torch.tensor([-1.0, 0.0, 1.0]))
        tensor([-3.6636,  0.0000,  3.6636])
    """
    return 2 * torch.atanh(kappa * widen(advantage.detach()))


def unsaturated(contrast: Tensor, prediction: Tensor, channels: int | None = None) -> Tensor:
    """The contrast without what only tints or saturates: its mean in each channel, and its part along the prediction.

    The mean of each channel tints the whole picture. On scenes it came first in training and differed from run to run, so it is
    taken for chance. What lies along the prediction's deviations from its own means makes light, dark and colours more extreme.
    Adaptive projected guidance (2410.02416) takes away the part along the prediction itself. In the latents of an autoencoder
    both are analogies, and nobody has tried them there.

    Args:
        contrast: contrast [B, C, ...]. Of points [B, D], and with one place only, it is returned as it is.
        prediction: prediction of x0 from the same x_t, of the contrast's shape.
        channels: dimension of the channels, as `Signals.channels`.

    Example:
        A picture of one channel: to be brighter everywhere, or where it is bright already, is taken away.

        >>> picture = torch.tensor([[[[2.0, 0.0, 0.0]]]])
        >>> unsaturated(torch.tensor([[[[0.5, 0.5, 0.5]]]]), picture)
        tensor([[[[0., 0., 0.]]]])
        >>> unsaturated(torch.tensor([[[[0.5, 0.5, -0.5]]]]), picture)
        tensor([[[[ 0.0000,  0.5000, -0.5000]]]])
    """
    if contrast.dim() < 3:
        return contrast
    if channels is None:
        channels = 2 if contrast.dim() == 3 else 1
    ordered = contrast.movedim(channels, 1)
    c, places = ordered.flatten(2), prediction.movedim(channels, 1).flatten(2)
    if c.shape[2] == 1:
        return contrast
    c, deviations = c - c.mean(2, keepdim=True), places - places.mean(2, keepdim=True)
    square = deviations.square().sum((1, 2), keepdim=True).clamp(min=torch.finfo(places.dtype).tiny)
    kept = c - (c * deviations).sum((1, 2), keepdim=True) / square * deviations
    return kept.reshape(ordered.shape).movedim(1, channels)


def followed(signals: Signals) -> Tensor | None:
    """The part of the contrast that samples follow [B, ...], fp32 or wider; None without a contrast.

    Example:
        >>> x0 = torch.zeros(1, 2)
        >>> followed(Signals(x0, x0, None, x0, fake_good=x0 + 0.25, fake_bad=x0 - 0.25))
        tensor([[0.5000, 0.5000]])
    """
    contrast = signals.contrast()
    return None if contrast is None else unsaturated(contrast, widen(signals.fake.detach()), signals.channels)


def guide_by_advantage(gamma: float) -> Transform:
    """Adds the third term, gamma times `followed`, to a direction whose signals have predictions for outcomes.

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
        if gamma == 0 or (contrast := followed(signals)) is None:
            return direction
        factor = 1.0 if signals.advantage_factor is None else signals.per_sample(signals.advantage_factor)
        return direction._replace(advance=gamma * factor * contrast)

    return transform
