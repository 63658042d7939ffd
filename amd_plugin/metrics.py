"""Distances between sets of samples, as pure functions. All take [N, D] features and return a float."""

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
    between = torch.cdist(made, real)
    inside = lambda distances, of: (distances <= _radius(of, k)).any(1).float().mean().item()  # noqa: E731
    return inside(between, real), inside(between.T, made)


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


def _radius(points: Tensor, k: int) -> Tensor:
    """Distance of each point to its k-th neighbour, itself not counted; [N]."""
    return torch.cdist(points, points).kthvalue(k + 1, dim=1).values
