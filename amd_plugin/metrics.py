"""Distances between sets of samples, as functions of features [N, D], and statistics of the pixels of single samples."""

from typing import NamedTuple

import torch
from torch import Tensor

from amd_plugin.randomness import generator


def frechet_distance(real: Tensor, made: Tensor) -> float:
    """Frechet distance (1706.08500) of Gaussian fits to `real` [M, D] and `made` [N, D].

    It is ``|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))`` for means m and covariances C.
    NaN where a feature is not finite, as the features of a broken student may be.
    """
    real, made = real.double(), made.double()
    if not (real.isfinite().all() and made.isfinite().all()):
        return float("nan")  # the eigenvalues' routine prints complaints of its own
    c1, c2 = torch.cov(real.T), torch.cov(made.T)
    # The eigenvalues of C1 C2 are real and non-negative, up to rounding.
    cross = torch.linalg.eigvals(c1 @ c2).real.clamp(min=0).sqrt().sum()
    distance = (real.mean(0) - made.mean(0)).square().sum() + c1.trace() + c2.trace() - 2 * cross
    return float(distance)


def precision_recall(real: Tensor, made: Tensor, k: int = 3) -> tuple[float, float]:
    """Improved (precision, recall) (1904.06991): the share of one set inside the k-NN balls of the other."""
    balls = neighbours(real, made, k)
    return balls.precision.mean().item(), balls.recall.mean().item()


class Neighbours(NamedTuple):
    """Statistics of k-NN balls, sample by sample; their means are the metrics of those names.

    Attributes:
        precision: [N], whether each made sample lies in the ball of any real sample.
        density: [N], the number of real samples' balls that each made sample lies in, over k.
        recall: [M], whether each real sample lies in the ball of any made sample.
        coverage: [M], whether the ball of each real sample contains a made sample.
    """

    precision: Tensor
    density: Tensor
    recall: Tensor
    coverage: Tensor


def neighbours(real: Tensor, made: Tensor, k: int = 3) -> Neighbours:
    """Improved precision and recall (1904.06991), density and coverage (2002.09797), sample by sample.

    Args:
        real: [M, D], without duplicates: a point that occurs k + 1 times has a ball of radius 0.
        made: [N, D].
        k: number of the neighbour on the surface of a ball; both sets must be larger.
    """
    between = torch.cdist(made, real)
    inside = between <= _radius(real, k)
    caught = (between.T <= _radius(made, k)).any(1)
    return Neighbours(inside.any(1).float(), inside.sum(1) / k, caught.float(), inside.any(0).float())


def spread(features: Tensor) -> float:
    """Mean distance between pairs of `features` [N, D]; 0 where all are equal."""
    return torch.pdist(features).mean().item()


def saturation(media: Tensor) -> Tensor:
    """Share of values at 0 or 1 in each sample of `media` [B, ...]; [B]. It grows when a student over-exposes."""
    return ((media <= 0) | (media >= 1)).float().flatten(1).mean(1)


def contrast(media: Tensor) -> Tensor:
    """Standard deviation within each sample of `media` [B, ...]; [B]. It falls when samples collapse to flat colour."""
    return media.float().flatten(1).std(1)


def motion(videos: Tensor) -> Tensor:
    """Mean absolute difference of adjacent frames of `videos` [B, C, T, H, W] in [0, 1]; [B]. It is 0 for a still picture."""
    return videos.float().diff(dim=2).abs().flatten(1).mean(1)


def consistency(frames: Tensor) -> Tensor:
    """Mean cosine similarity of the features of adjacent `frames` [B, T, D]; [B]. It is 1 for a still picture: see `motion`."""
    return torch.nn.functional.cosine_similarity(frames[:, 1:], frames[:, :-1], dim=-1).mean(1)


def sliced_wasserstein(a: Tensor, b: Tensor, directions: int = 64) -> float:
    """Mean 1-Wasserstein distance of `a` and `b`, both [N, D], over random 1-D projections."""
    angles = torch.randn(a.shape[1], directions, generator=generator(0, "sliced wasserstein"))
    angles = angles / angles.norm(dim=0)
    return float(((a @ angles).sort(0).values - (b @ angles).sort(0).values).abs().mean())


def mmd(a: Tensor, b: Tensor, scales: tuple[float, ...] = (0.1, 0.3, 1.0)) -> float:
    """Maximum mean discrepancy (not squared) of `a` [N, D] and `b` [M, D] under Gaussian kernels of the widths `scales`."""

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        means = [(-torch.cdist(x, y).square() / (2 * s * s)).exp().mean() for s in scales]
        return sum(means, torch.zeros(())) / len(scales)

    return (kernel(a, a) + kernel(b, b) - 2 * kernel(a, b)).clamp(min=0).sqrt().item()


def diversity_ratio(made: Tensor, real: Tensor) -> float:
    """Mean distance between pairs of `made` [N, D] over that of `real` [M, D]: 1 is ideal; below 1 samples are too similar."""
    return (torch.pdist(made).mean() / torch.pdist(real).mean()).item()


def correlation_within(a: Tensor, b: Tensor, groups: Tensor) -> float:
    """Pearson's correlation of `a` and `b`, both [B], within `groups` [B]: each group's mean is subtracted first.

    It is NaN where `a` or `b` does not vary within any group.
    """
    members, index = torch.unique(groups, return_inverse=True)
    count = torch.bincount(index).double()
    residuals = []
    for values in (a.double(), b.double()):
        mean = torch.zeros(len(members), dtype=torch.double).index_add(0, index, values) / count
        residuals.append(values - mean[index])
    one, other = residuals
    norms = (one.norm() * other.norm()).item()
    return (one @ other).item() / norms if norms > 1e-12 else float("nan")


def _radius(points: Tensor, k: int) -> Tensor:
    """Distance of each of `points` [N, D] to its k-th neighbour, itself not counted; [N]."""
    return torch.cdist(points, points).kthvalue(k + 1, dim=1).values
