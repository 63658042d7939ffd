"""What to log about a direction and the advantages that shaped it: sizes and angles, weights as they were applied, zones.

Means and shares of samples, so that they can be averaged over micro-batches, processes and steps.
"""

import math

import torch
from torch import Tensor

from amd_plugin.maths.coherence import by_band
from amd_plugin.maths.operators import Window, inside
from amd_plugin.maths.signals import Direction

# Of alpha, beta and alpha / beta; what is left as it was has a bin of its own.
EDGES = (0.0, 0.25, 0.5, 0.75, 0.95, 1.05, 1.25, 1.5, 1.75)


def shares(values: Tensor) -> dict[str, Tensor]:
    """A histogram of `values` [B]: share in each bin of `EDGES`, named by its lower edge; the last one is open."""
    edges = torch.tensor(EDGES[1:], dtype=values.dtype, device=values.device)
    bins = torch.bucketize(values.detach().contiguous(), edges, right=True)[:, None] == torch.arange(
        len(EDGES), device=values.device
    )
    return {f"{edge:.2f}": share for edge, share in zip(EDGES, bins.float().mean(0).unbind(), strict=True)}


def term_metrics(direction: Direction) -> dict[str, Tensor]:
    """The two terms of a normalised direction: sizes, their angle, and the matching term by noise level.

    The sizes are root mean squares, in units of the normaliser; the cosine is that of each sample, averaged.
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
    """Alpha and beta as they were applied, and the guidance scale ``1 + (w - 1) alpha / beta`` that a sample felt.

    Means, and histograms (`shares`) of alpha, beta and of ``alpha / beta``, where anything was adapted; nothing elsewhere.
    Outside of `guidance_window` there is no guidance.
    """
    if direction.alpha is None or direction.beta is None:
        return {}
    alpha, beta, sigma = direction.alpha, direction.beta, direction.signals.sigma
    relative = alpha / beta
    if guidance_window is not None and sigma is not None:
        relative = torch.where(inside(sigma, guidance_window), relative, 0.0)
    metrics = {"alpha": alpha.mean(), "beta": beta.mean(), "guidance": (1 + (direction.guidance_scale - 1) * relative).mean()}
    for name, weight in (("alpha", alpha), ("beta", beta), ("guidance", relative)):
        metrics |= {f"{name}_share/{edge}": share for edge, share in shares(weight).items()}
    return metrics


def zone_metrics(direction: Direction, zone: Tensor) -> dict[str, Tensor]:
    """Share of samples in the `zone` [B] bool, and the size of their matching term, by noise level where there is one."""
    in_zone, sigma = zone.to(direction.match.dtype), direction.signals.sigma
    metrics = {"zone_share": in_zone.mean()}
    if sigma is not None:
        sizes = direction.match.flatten(1).square().mean(1).sqrt() * in_zone
        found, share = by_band(sizes, sigma), by_band(in_zone, sigma)
        metrics |= {f"zone_share/{name}": value for name, value in share.items()}
        metrics |= {f"zone_match_norm/{name}": found[name] / share[name] for name in found}
    return metrics


def limit_share(advantage: Tensor, limit: float, squash: str | None) -> Tensor:
    """Share of `advantage` [N] that the squashing holds back: at +-limit when clipped; what was beyond it for tanh."""
    reached = limit * (math.tanh(1) if squash == "tanh" else 1)
    return (advantage.abs() >= reached * (1 - 1e-6)).float().mean()
