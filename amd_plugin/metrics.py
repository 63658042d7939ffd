"""Distances between sets of samples, as pure functions of [N, D] features; and what can be seen in a single sample's pixels."""

from typing import NamedTuple

import torch
from torch import Tensor

from amd_plugin.randomness import generator


def frechet_distance(real: Tensor, made: Tensor) -> float:
    """Frechet distance between Gaussian fits, ``|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))`` (1706.08500)."""
    real, made = real.double(), made.double()
    c1, c2 = torch.cov(real.T), torch.cov(made.T)
    # The eigenvalues of C1 C2 are real and non-negative, up to rounding.
    cross = torch.linalg.eigvals(c1 @ c2).real.clamp(min=0).sqrt().sum()
    return ((real.mean(0) - made.mean(0)).square().sum() + c1.trace() + c2.trace() - 2 * cross).item()


def precision_recall(real: Tensor, made: Tensor, k: int = 3) -> tuple[float, float]:
    """Improved precision and recall (1904.06991): the share of one set inside the k-NN balls of the other."""
    found = neighbours(real, made, k)
    return found.precision.mean().item(), found.recall.mean().item()


class Neighbours(NamedTuple):
    """What k-NN balls say about each sample; the means are the metrics of those names.

    Attributes:
        precision, density: [N], of the made ones: whether in any ball of a real one, and in how many, over k.
        recall, coverage: [M], of the real ones: whether in any ball of a made one, and whether its own ball holds a made one.
    """

    precision: Tensor
    density: Tensor
    recall: Tensor
    coverage: Tensor


def neighbours(real: Tensor, made: Tensor, k: int = 3) -> Neighbours:
    """Improved precision and recall (1904.06991), density and coverage (2002.09797), sample by sample.

    Args:
        real: [M, D], without duplicates: a point that is there k + 1 times has a ball of radius 0.
        made: [N, D].
        k: which neighbour a ball reaches to; both sets must be larger.
    """
    between = torch.cdist(made, real)
    inside = between <= _radius(real, k)
    caught = (between.T <= _radius(made, k)).any(1)
    return Neighbours(inside.any(1).float(), inside.sum(1) / k, caught.float(), inside.any(0).float())


def spread(features: Tensor) -> float:
    """Mean distance between pairs of [N, D]; 0 where all are alike."""
    return torch.pdist(features).mean().item()


def saturation(media: Tensor) -> Tensor:
    """Share of values of each sample at 0 or 1 [B], which grows when a student over-exposes."""
    return ((media <= 0) | (media >= 1)).float().flatten(1).mean(1)


def contrast(media: Tensor) -> Tensor:
    """Standard deviation within each sample [B], which falls when it collapses to flat colour."""
    return media.float().flatten(1).std(1)


def motion(videos: Tensor) -> Tensor:
    """Mean absolute difference of adjacent frames [B] of videos [B, C, T, H, W] in [0, 1]; 0 for a still picture."""
    return videos.float().diff(dim=2).abs().flatten(1).mean(1)


def consistency(frames: Tensor) -> Tensor:
    """Mean cosine similarity of adjacent frames' features [B, T, D]; [B]. A still picture has 1: read it beside `motion`."""
    return torch.nn.functional.cosine_similarity(frames[:, 1:], frames[:, :-1], dim=-1).mean(1)


def sliced_wasserstein(a: Tensor, b: Tensor, directions: int = 64) -> float:
    """Mean 1-Wasserstein distance over random 1-D projections; both sets of one size."""
    angles = torch.randn(a.shape[1], directions, generator=generator(0, "sliced wasserstein"))
    angles = angles / angles.norm(dim=0)
    return ((a @ angles).sort(0).values - (b @ angles).sort(0).values).abs().mean().item()


def mmd(a: Tensor, b: Tensor, scales: tuple[float, ...] = (0.1, 0.3, 1.0)) -> float:
    """Maximum mean discrepancy (not squared) under a mean of Gaussian kernels of the given widths."""
    kernel = lambda x, y: sum((-torch.cdist(x, y).square() / (2 * s * s)).exp().mean() for s in scales) / len(scales)  # noqa: E731
    return (kernel(a, a) + kernel(b, b) - 2 * kernel(a, b)).clamp(min=0).sqrt().item()


def diversity_ratio(made: Tensor, real: Tensor) -> float:
    """Mean distance between pairs of `made` over that of `real`: 1 is right, less is concentrated, more is scattered."""
    return (torch.pdist(made).mean() / torch.pdist(real).mean()).item()


def correlation_within(a: Tensor, b: Tensor, groups: Tensor) -> float:
    """Pearson's correlation of `a` and `b`, both [B], within `groups` [B]: of what is left when each group's mean is taken off.

    NaN where one of them varies in no group.
    """
    members, index = torch.unique(groups, return_inverse=True)
    count = torch.bincount(index).double()
    left = []
    for values in (a.double(), b.double()):
        mean = torch.zeros(len(members), dtype=torch.double).index_add(0, index, values) / count
        left.append(values - mean[index])
    sizes = (left[0].norm() * left[1].norm()).item()
    return (left[0] @ left[1]).item() / sizes if sizes > 1e-12 else float("nan")


def _radius(points: Tensor, k: int) -> Tensor:
    """Distance of each point to its k-th neighbour, itself not counted; [N]."""
    return torch.cdist(points, points).kthvalue(k + 1, dim=1).values
