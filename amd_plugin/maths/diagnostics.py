"""What to log about a direction and the advantages that shaped it: sizes, angles, applied weights, zones.

Most values are means or shares over samples, so that their averages over micro-batches, processes and steps are those of all
samples. Three kinds are not: root mean squares, means at one noise level or rung, which few samples of a micro-batch may have,
and ratios of these.
"""

import torch
from torch import Tensor

from amd_plugin.maths.coherence import by_band
from amd_plugin.maths.operators import Window, inside
from amd_plugin.maths.signals import Direction

# Lower edges for alpha, beta and alpha / beta. Unchanged samples (weight 1) have a bin of their own, 0.95 to 1.05.
EDGES = (0.0, 0.25, 0.5, 0.75, 0.95, 1.05, 1.25, 1.5, 1.75)


def shares(values: Tensor) -> dict[str, Tensor]:
    """A histogram of `values` [B]: the share in each bin of `EDGES`, named by its lower edge; the last bin is open.

    Example:
        >>> histogram = shares(torch.tensor([1.0, 1.0, 0.5, 2.0]))
        >>> {edge: share.item() for edge, share in histogram.items() if share > 0}
        {'0.50': 0.25, '0.95': 0.5, '1.75': 0.25}
    """
    edges = torch.tensor(EDGES[1:], dtype=values.dtype, device=values.device)
    bins = torch.bucketize(values.detach().contiguous(), edges, right=True)[:, None] == torch.arange(
        len(EDGES), device=values.device
    )
    return {f"{edge:.2f}": share for edge, share in zip(EDGES, bins.float().mean(0).unbind(), strict=True)}


def term_metrics(direction: Direction) -> dict[str, Tensor]:
    """The two terms of a normalised direction: sizes, their angle, and the matching term by noise level.

    Sizes are root mean squares, in units of the normaliser. The cosine is taken per sample, then averaged.

    Example:
        >>> from amd_plugin.maths.operators import dmd
        >>> from amd_plugin.maths.signals import Signals
        >>> x0 = torch.zeros(2, 4)
        >>> direction = dmd(guidance_scale=3.0)(Signals(x0, real_cond=x0 + 1, real_uncond=x0, fake=x0))
        >>> term_metrics(direction)
        {'match_norm': tensor(1.), 'guide_norm': tensor(2.), 'match_guide_cosine': tensor(1.)}
    """
    match, guide = direction.match.flatten(1), direction.guide.flatten(1)
    metrics = {"match_norm": match.square().mean().sqrt(), "guide_norm": guide.square().mean().sqrt()}
    if direction.guidance_scale != 1:
        metrics["match_guide_cosine"] = torch.nn.functional.cosine_similarity(match, guide, dim=1).mean()
    if direction.signals.sigma is not None:
        sizes = match.square().mean(1).sqrt()
        metrics |= {f"match_norm/{name}": value for name, value in by_band(sizes, direction.signals.sigma).items()}
    return metrics


def weight_metrics(direction: Direction, guidance_window: Window | None = None) -> dict[str, Tensor]:
    """Alpha and beta as applied, and each sample's effective guidance scale ``1 + (w - 1) alpha / beta``.

    Means, and histograms (`shares`) of alpha, beta and ``alpha / beta``. Empty for a direction that was not adapted.

    Args:
        direction: direction, after `amd_plugin.maths.operators.adapt`.
        guidance_window: (low, high) noise levels outside which there is no guidance; None is no window.

    Example:
        >>> from amd_plugin.maths.operators import amd
        >>> from amd_plugin.maths.signals import Signals
        >>> x0 = torch.zeros(2, 4)
        >>> signals = Signals(x0, real_cond=x0 + 1, real_uncond=x0, fake=x0, advantage=torch.tensor([-1.0, 1.0]))
        >>> metrics = weight_metrics(amd(3.0, strength=0.5, side="negative")(signals))
        >>> {name: round(metrics[name].item(), 3) for name in ("alpha", "beta", "guidance")}
        {'alpha': 0.75, 'beta': 1.25, 'guidance': 2.333}
    """
    if direction.alpha is None or direction.beta is None:
        return {}
    alpha, beta, noise_level = direction.alpha, direction.beta, direction.signals.sigma
    relative = alpha / beta
    if guidance_window is not None and noise_level is not None:
        relative = torch.where(inside(noise_level, guidance_window), relative, 0.0)
    metrics = {"alpha": alpha.mean(), "beta": beta.mean(), "guidance": (1 + (direction.guidance_scale - 1) * relative).mean()}
    for name, weight in (("alpha", alpha), ("beta", beta), ("guidance", relative)):
        metrics |= {f"{name}_share/{edge}": share for edge, share in shares(weight).items()}
    return metrics


def zone_metrics(direction: Direction, zone: Tensor) -> dict[str, Tensor]:
    """Share of samples in the `zone` [B] bool, and the size of their matching term by noise level, where levels are known.

    Where exit rungs are known, the share is also given by rung; NaN for a rung without samples here.

    Example:
        >>> from amd_plugin.maths.operators import dmd
        >>> from amd_plugin.maths.signals import Signals
        >>> x0 = torch.zeros(4, 2)
        >>> direction = dmd()(Signals(x0, real_cond=x0 + 1, real_uncond=None, fake=x0))
        >>> zone_metrics(direction, zone=torch.tensor([True, False, False, False]))
        {'zone_share': tensor(0.2500)}
    """
    in_zone, noise_level = zone.to(direction.match.dtype), direction.signals.sigma
    metrics = {"zone_share": in_zone.mean()}
    if (rungs := direction.signals.rung) is not None:
        # Those of the whole batch: processes average metrics by name, and each has samples of other rungs.
        everyones = rungs if direction.signals.batch_rung is None else direction.signals.batch_rung
        for rung in sorted(set(everyones.tolist())):
            of_rung = rungs == rung  # rungs are on the CPU, so that their count waits for no device
            share = (in_zone * of_rung.to(in_zone, non_blocking=True)).sum() / int(of_rung.sum())
            metrics[f"zone_share/rung {rung}"] = share
    if noise_level is not None:
        sizes = direction.match.flatten(1).square().mean(1).sqrt() * in_zone
        size, share = by_band(sizes, noise_level), by_band(in_zone, noise_level)
        metrics |= {f"zone_share/{name}": value for name, value in share.items()}
        metrics |= {f"zone_match_norm/{name}": size[name] / share[name] for name in size}
    return metrics


def gradient_of(values: Tensor, x0: Tensor) -> Tensor | None:
    """Gradient [B, ...] of each of the `values` [B] on its own sample of `x0`; None for values that do not follow from it.

    Example:
        >>> x0 = torch.tensor([[3.0], [5.0]], requires_grad=True)
        >>> gradient_of(x0.square().sum(1), x0)
        tensor([[ 6.],
                [10.]])
    """
    if not (values.requires_grad and x0.requires_grad):
        return None
    gradient: Tensor | None = torch.autograd.grad(values.sum(), x0, retain_graph=True, allow_unused=True)[0]
    return gradient


def gradient_ratio(loss: Tensor, x0: Tensor, direction: Tensor) -> Tensor:
    """Length of the gradient of another loss beside that of the matching loss; 0 for a loss that does not follow from `x0`.

    Root mean squares over samples. The matching loss is a mean over a sample's elements and a reward is not, so that equal
    weights of the latter are longer the more elements there are.

    Args:
        loss: other loss of each sample [B].
        x0: student samples [B, ...], on which both losses depend.
        direction: direction [B, ...] of the matching loss.

    Example:
        >>> x0 = torch.zeros(1, 2, requires_grad=True)
        >>> gradient_ratio(3 * x0.sum(1), x0, torch.ones(1, 2))
        tensor(6.)
    """
    if (gradient := gradient_of(loss, x0)) is None:
        return loss.new_zeros(())
    matching = direction.norm() / direction[0].numel()
    ratio: Tensor = gradient.to(direction).norm() / matching.clamp(min=torch.finfo(matching.dtype).tiny)
    return ratio


def clip_share(advantage: Tensor) -> Tensor:
    """Share of `advantage` [N] at -1 or 1, where it is clipped.

    Example:
        >>> clip_share(torch.tensor([-1.0, 0.2, 0.4, 1.0]))
        tensor(0.5000)
    """
    return (advantage.abs() >= 1 - 1e-6).float().mean()
