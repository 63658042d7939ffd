"""The operators of the method: each makes or transforms a `Direction`, and all compose with `chain`.

A *maker* takes `Signals` and returns a `Direction`; a *transform* takes a `Direction` and returns one. So

    amd = chain(dmd(guidance_scale), adapt(strength), normalize())

reads as it computes. Pure functions on tensors; no gradient flows through any of them. Equation numbers are those of
2602.07345.
"""

from collections.abc import Callable
from typing import Any, Literal, get_args, overload

import torch
from torch import Tensor

from amd_plugin.maths.prediction import widen
from amd_plugin.maths.signals import Direction, Signals

__all__ = [
    "EVERYWHERE", "Maker", "Side", "Transform", "Window", "adapt", "adaptation_weights", "amd", "chain", "decoupled_dmd", "dmd",
    "inside", "normalize", "weigh", "window",
]  # fmt: skip

Maker = Callable[[Signals], Direction]
Transform = Callable[[Direction], Direction]
Side = Literal["both", "negative", "guidance_only"]
Window = tuple[float, float]

EVERYWHERE: Window = (float("-inf"), float("inf"))


@overload
def chain(maker: Maker, /, *transforms: Transform) -> Maker: ...
@overload
def chain(*transforms: Transform) -> Transform: ...
def chain(*operators: Callable[[Any], Direction]) -> Callable[[Any], Any]:
    """Applies `operators` from left to right: the first makes a direction, the others transform it. Empty: the identity.

    Example:
        >>> x0 = torch.zeros(2, 1)
        >>> signals = Signals(x0, real_cond=x0 + 2, real_uncond=x0 + 1, fake=x0)
        >>> chain(dmd(guidance_scale=3.0), weigh(match=0.5))(signals).total()
        tensor([[3.],
                [3.]])
    """

    def composed(value: Any) -> Any:
        for operator in operators:
            value = operator(value)
        return value

    return composed


def dmd(guidance_scale: float = 1.0) -> Maker:
    """DMD / DMD2 (2311.18828, 2405.14867): match = d_real_cond - d_fake, guide = (w - 1) d_ca, before normalisation.

    Args:
        guidance_scale: guidance scale w of the real teacher, standard form. At 1 the guidance term is exactly 0.

    Example:
        >>> x0 = torch.zeros(1, 1)
        >>> direction = dmd(guidance_scale=3.0)(Signals(x0, real_cond=x0 + 2, real_uncond=x0 + 1, fake=x0))
        >>> direction.match, direction.guide
        (tensor([[2.]]), tensor([[2.]]))
    """

    def make(signals: Signals) -> Direction:
        match = widen(signals.real_cond.detach()) - widen(signals.fake.detach())
        return Direction(match, (guidance_scale - 1) * signals.augmentation(), signals, guidance_scale)

    return make


def decoupled_dmd(guidance_scale: float = 1.0, match_window: Window = EVERYWHERE, guide_window: Window = EVERYWHERE) -> Maker:
    """Decoupled DMD: guidance ("spear") and matching ("shield"), each at noise levels of its own.

    Give `Signals.guide_cond` and `guide_uncond` from an independent draw of the noise level for the full method. The
    windows need no further forward: a term counts only for samples whose `Signals.sigma` lies in its window.

    Args:
        guidance_scale: guidance scale w, as in `dmd`.
        match_window: noise levels (low, high) of the matching term, inclusive, fractions of the schedule as `Signals.sigma`.
        guide_window: noise levels (low, high) of the guidance term, likewise.

    Example:
        Guidance at high noise only, so the first sample (level 0.2) gets none:

        >>> x0, noise_level = torch.zeros(2, 1), torch.tensor([0.2, 0.8])
        >>> signals = Signals(x0, real_cond=x0 + 2, real_uncond=x0 + 1, fake=x0, sigma=noise_level)
        >>> decoupled_dmd(3.0, guide_window=(0.5, 1.0))(signals).guide
        tensor([[0.],
                [2.]])
    """
    return chain(dmd(guidance_scale), window(match_window, guide_window))


def amd(guidance_scale: float = 1.0, strength: float = 0.5, side: Side = "both") -> Maker:
    """Adaptive Matching Distillation (2602.07345), Eq. 10: ``beta (d_real_cond - d_fake) + alpha (w - 1) d_ca``.

    `adapt` defines alpha and beta. Without advantages, or with equal rewards, this is `dmd` to the bit.

    Args:
        guidance_scale: guidance scale w, as in `dmd`.
        strength: adaptation strength s in [0, 1).
        side: samples that are weighed, see `adapt`.

    Raises:
        ValueError: for a strength outside [0, 1), or another side.

    Example:
        The first sample fails (advantage -1). It gets more matching and less guidance than `dmd` would give it:

        >>> x0, advantage = torch.zeros(2, 1), torch.tensor([-1.0, 0.0])
        >>> signals = Signals(x0, real_cond=x0 + 2, real_uncond=x0 + 1, fake=x0, advantage=advantage)
        >>> direction = amd(guidance_scale=3.0, strength=0.5)(signals)
        >>> direction.match, direction.guide
        (tensor([[3.],
                [2.]]), tensor([[1.],
                [2.]]))
    """
    return chain(dmd(guidance_scale), adapt(strength, side))


def adapt(strength: float, side: Side = "both", *, static: bool = False) -> Transform:
    """Dynamic Score Adaptation, Eq. 12-13: alpha = 1 + s a on the guidance term, beta = 1 - s a on the matching term.

    Args:
        strength: adaptation strength s in [0, 1).
        side: ``both`` is the paper's form. ``negative`` uses min(a, 0): good samples keep plain DMD, and only failing ones
            get more matching and less guidance. With guidance, ``both`` also pushes good samples outward and loses modes.
            ``guidance_only`` is ``negative`` with beta = 1: failing samples get less guidance, and nothing else changes.
        static: whether every sample gets the mean alpha and beta of the whole batch (`Signals.batch_advantage`). This is the
            control that keeps the overall level of the weights and drops what is per sample.

    Raises:
        ValueError: for a strength outside [0, 1), or another side.

    Example:
        With ``negative`` a good sample (advantage 1) keeps plain DMD, while ``both`` gives it more guidance:

        >>> x0, advantage = torch.zeros(2, 1), torch.tensor([-1.0, 1.0])
        >>> signals = Signals(x0, real_cond=x0 + 2, real_uncond=x0 + 1, fake=x0, advantage=advantage)
        >>> chain(dmd(3.0), adapt(0.5, side="both"))(signals).alpha
        tensor([0.5000, 1.5000])
        >>> chain(dmd(3.0), adapt(0.5, side="negative"))(signals).alpha
        tensor([0.5000, 1.0000])
    """
    if not 0 <= strength < 1:
        raise ValueError(f"strength: must be in [0, 1), got {strength}. At 1 the weight of matching reaches 0")
    if side not in get_args(Side):
        raise ValueError(f"side: must be one of {', '.join(get_args(Side))}, got {side!r}")

    def transform(direction: Direction) -> Direction:
        signals, shaped = direction.signals, direction.signals.per_sample
        if signals.advantage is None or strength == 0:
            return direction
        alpha, beta = adaptation_weights(signals.advantage, strength, side)
        if static:
            whole = signals.advantage if signals.batch_advantage is None else signals.batch_advantage
            means = (weight.mean() for weight in adaptation_weights(whole, strength, side))
            alpha, beta = (mean.expand_as(alpha) for mean in means)
        match, guide = shaped(beta) * direction.match, shaped(alpha) * direction.guide
        return direction._replace(match=match, guide=guide, alpha=alpha, beta=beta)

    return transform


def adaptation_weights(advantage: Tensor, strength: float, side: Side = "both") -> tuple[Tensor, Tensor]:
    """(alpha, beta) of Eq. 13 for `advantage` [B] in [-1, 1]; both [B], fp32 or wider.

    Args:
        advantage: group advantages [B] in [-1, 1].
        strength: adaptation strength s in [0, 1).
        side: see `adapt`.

    Example:
        A failing sample, an average one and a good one; what each side does to them:

        >>> a = torch.tensor([-1.0, 0.0, 1.0])
        >>> adaptation_weights(a, strength=0.5, side="both")
        (tensor([0.5000, 1.0000, 1.5000]), tensor([1.5000, 1.0000, 0.5000]))
        >>> adaptation_weights(a, strength=0.5, side="negative")
        (tensor([0.5000, 1.0000, 1.0000]), tensor([1.5000, 1.0000, 1.0000]))
        >>> adaptation_weights(a, strength=0.5, side="guidance_only")
        (tensor([0.5000, 1.0000, 1.0000]), tensor([1., 1., 1.]))
    """
    a = widen(advantage.detach())
    if side != "both":
        a = a.clamp(max=0)
    alpha = 1 + strength * a
    if side == "guidance_only":
        return alpha, torch.ones_like(a)
    return alpha, 1 - strength * a


def weigh(match: float = 1.0, guide: float = 1.0) -> Transform:
    """Constant weights on the two terms: the static control to AMD's per-sample ones.

    Args:
        match: weight of the matching term, any number.
        guide: weight of the guidance term, any number.

    Example:
        >>> x0 = torch.zeros(1, 1)
        >>> signals = Signals(x0, real_cond=x0 + 2, real_uncond=x0 + 1, fake=x0)
        >>> chain(dmd(3.0), weigh(match=1.5, guide=0.5))(signals).total()
        tensor([[4.]])
    """

    def transform(direction: Direction) -> Direction:
        return direction._replace(match=match * direction.match, guide=guide * direction.guide)

    return transform


def window(match: Window = EVERYWHERE, guide: Window = EVERYWHERE) -> Transform:
    """Keeps each term only for samples whose `Signals.sigma` lies in its (low, high), inclusive.

    Raises:
        ValueError: when called on a direction whose signals have no sigma, unless both windows are open.

    Example:
        >>> x0, noise_level = torch.zeros(2, 1), torch.tensor([0.2, 0.8])
        >>> signals = Signals(x0, real_cond=x0 + 2, real_uncond=x0 + 1, fake=x0, sigma=noise_level)
        >>> chain(dmd(), window(match=(0.0, 0.5)))(signals).match
        tensor([[2.],
                [0.]])
    """

    def transform(direction: Direction) -> Direction:
        if match == EVERYWHERE and guide == EVERYWHERE:
            return direction
        noise_level = direction.signals.sigma
        if noise_level is None:
            raise ValueError("Signals.sigma: needed by a window over noise levels, got None")
        shaped = direction.signals.per_sample
        return direction._replace(
            match=shaped(inside(noise_level, match)) * direction.match,
            guide=shaped(inside(noise_level, guide)) * direction.guide,
        )

    return transform


def inside(noise_level: Tensor, window: Window) -> Tensor:
    """Which of `noise_level` [B] lie in (low, high), inclusive; [B] bool.

    Example:
        >>> inside(torch.tensor([0.2, 0.5, 0.8]), (0.5, 1.0))
        tensor([False,  True,  True])
    """
    low, high = window
    return (noise_level >= low) & (noise_level <= high)


def normalize(kind: Literal["per_sample", "global"] = "per_sample", eps: float = 1e-6) -> Transform:
    """DMD2's normaliser: divides by ``mean |x0 - d_real| + eps``, d_real the guided prediction at the plain guidance scale.

    The divisor never depends on advantages or windows, so that objectives compared with each other differ in direction only.

    Args:
        kind: ``per_sample`` takes the mean over each sample (DMD2), ``global`` over all samples of the call (FastVideo).
            The latter makes a step depend on how the batch is split over micro-batches and processes.
        eps: small number added to the mean, in units of x0.

    Raises:
        ValueError: for another kind.

    Example:
        Both samples move by the same length, however far the teacher's prediction is from them:

        >>> x0 = torch.zeros(2, 1)
        >>> signals = Signals(x0, real_cond=torch.tensor([[2.0], [8.0]]), real_uncond=None, fake=x0)
        >>> chain(dmd(), normalize())(signals).total()
        tensor([[1.0000],
                [1.0000]])
    """
    if kind not in ("per_sample", "global"):
        raise ValueError(f"normalizer: must be 'per_sample' or 'global', got {kind!r}")

    def transform(direction: Direction) -> Direction:
        signals, w = direction.signals, direction.guidance_scale
        guided = widen(signals.real_cond.detach()) + (w - 1) * signals.augmentation()
        distance = (widen(signals.x0.detach()) - guided).abs()
        scale = distance.mean() if kind == "global" else signals.per_sample(distance.reshape(len(distance), -1).mean(1))
        advance = None if direction.advance is None else direction.advance / (scale + eps)
        return direction._replace(match=direction.match / (scale + eps), guide=direction.guide / (scale + eps), advance=advance)

    return transform
