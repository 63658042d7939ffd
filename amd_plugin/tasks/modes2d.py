"""A class-conditional mixture in the plane with known density.

The teacher learns from data with wrong labels and outliers, so its guidance is unreliable in known places.
"""

import math
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from amd_plugin import metrics as measure
from amd_plugin.errors import OptionError
from amd_plugin.randomness import generator
from amd_plugin.tasks.classifiers import trained_classifier
from amd_plugin.tasks.judge import Judge

Points = list[list[list[float]]]


class Modes2D:
    """Gaussian modes in the plane, several per class.

    Args:
        geometry: ``pinwheel`` (arms that bend), ``ring`` (each class a cluster on a circle) or ``grid``.
        classes: number of classes.
        modes: number of modes in each class.
        std: standard deviation of every mode.
        weights: probabilities of the modes of a class; default: .25, .45, .30 for three modes, equal otherwise.
        means: explicit positions [classes][modes][x, y] instead of a geometry.
        label_noise: share of training samples with a uniformly random label.
        outliers: share of training samples that are uniform over the square around the modes.
    """

    name: ClassVar[str] = "modes2d"
    metrics: ClassVar[dict[str, str]] = {
        "precision": "up", "coverage": "up", "tv": "down", "sliced_wasserstein": "down", "mmd": "down", "diversity": "one",
    }  # fmt: skip

    in_pixels: ClassVar[bool] = False
    media_channels: ClassVar[int] = 2
    has_samples = True
    seed = 0

    def __init__(
        self,
        *,
        geometry: Literal["pinwheel", "ring", "grid"] = "pinwheel",
        classes: Annotated[int, Field(ge=2, le=64)] = 8,
        modes: Annotated[int, Field(ge=1, le=16)] = 3,
        std: Annotated[float, Field(gt=0)] = 0.12,
        weights: list[Annotated[float, Field(gt=0)]] | None = None,
        means: Points | None = None,
        label_noise: Annotated[float, Field(ge=0, le=1)] = 0.2,
        outliers: Annotated[float, Field(ge=0, le=1)] = 0.05,
    ):
        if means is not None:
            sizes = {len(of_class) for of_class in means}
            if len(means) < 2 or len(sizes) != 1 or {len(point) for of_class in means for point in of_class} != {2}:
                shape = "[classes][modes][x, y], at least two classes with as many modes in each"
                raise OptionError("means", f"must be {shape}, got {means}")
            classes, modes = len(means), next(iter(sizes))
        if weights is None:
            weights = [0.25, 0.45, 0.30] if modes == 3 else [1.0] * modes
        if len(weights) != modes:
            raise OptionError("weights", f"must be one per mode, {modes} of them, got {len(weights)}")
        self.num_classes = classes
        self.sample_shape: tuple[int, ...] = (2,)
        self.label_noise, self.outliers, self.std = label_noise, outliers, std
        self.means = torch.tensor(means) if means is not None else _GEOMETRIES[geometry](classes, modes)
        self.weights = torch.tensor(weights) / sum(weights)
        self.reach = self.means.abs().max().item() + 5 * std
        self.made_of: dict[str, Any] = {
            "task": self.name, "means": self.means.tolist(), "weights": self.weights.tolist(), "std": std,
            "label_noise": label_noise, "outliers": outliers,
        }  # fmt: skip

    def real_data(self, count: int, generator: torch.Generator, pixels: tuple[int, int] | None = None) -> tuple[Tensor, Tensor]:
        """(points [B, 2], labels [B]) of the true mixture."""
        labels = torch.randint(self.num_classes, (count,), generator=generator)
        return self._points(labels, generator), labels

    def training_data(
        self, count: int, generator: torch.Generator, position: int = 0, pixels: tuple[int, int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """The same with random labels on one share of the points, and outliers in place of another."""
        points, labels = self.real_data(count, generator)
        wrong = torch.rand(count, generator=generator) < self.label_noise
        labels = torch.where(wrong, torch.randint(self.num_classes, (count,), generator=generator), labels)
        away = torch.rand(count, 1, generator=generator) < self.outliers
        return torch.where(away, self._anywhere(count, generator), points), labels

    def draw_labels(self, position: int, count: int, generator: torch.Generator) -> Tensor:
        """Uniform over the classes."""
        return torch.randint(self.num_classes, (count,), generator=generator, device=generator.device)

    def balanced_labels(self, count: int) -> Tensor:
        """Labels in order, each count // classes times."""
        return torch.arange(self.num_classes).repeat_interleave(count // self.num_classes)

    def prompts(self, labels: Tensor) -> list[str]:
        """``class 3``."""
        return [f"class {label}" for label in labels.tolist()]

    def columns(self, labels: Tensor) -> dict[str, Any]:
        """``labels``."""
        return {"labels": labels}

    def asked_for(self, rows: int, evaluated: int) -> list[str]:
        """Every class's prompt."""
        return self.prompts(torch.arange(self.num_classes))

    def to_media(self, samples: Tensor) -> Tensor:
        """Points are their own media."""
        return samples

    def classifier(self) -> nn.Module:
        """An MLP from points [B, 2] to logits of classes and "none", trained on clean and on uniform points."""
        width, none = 64, self.num_classes

        def build() -> nn.Module:
            return nn.Sequential(nn.Linear(2, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, none + 1))

        def batch(draws: torch.Generator) -> tuple[Tensor, Tensor]:
            points, labels = self.real_data(384, draws)
            return torch.cat((points, self._anywhere(128, draws))), torch.cat((labels, torch.full((128,), none)))

        return trained_classifier(
            "classifier-modes2d", self.made_of, build, batch, steps=2000, learning_rate=5e-3, seed=self.seed
        )

    def log_density(self, points: Tensor, labels: Tensor) -> Tensor:
        """Exact log density [B] of `points` [B, 2] under their class."""
        squared = (points[:, None] - self.means[labels]).square().sum(-1)
        log_modes = self.weights.log() - squared / (2 * self.std**2) - math.log(2 * math.pi * self.std**2)
        return log_modes.logsumexp(1)

    def judge(self) -> Judge:
        """The exact density: a point fits if its density is above the 0.5 % quantile of its class."""
        labels = self.balanced_labels(100 * self.num_classes)
        floor = self.log_density(self._points(labels, generator(0, "modes2d judge")), labels).quantile(0.005)
        return Judge(
            "the coordinates themselves, and the exact density", lambda points: points,
            lambda points, classes: (self.log_density(points, classes) > floor).float(),
        )  # fmt: skip

    def evaluate(self, media: Tensor, labels: Tensor, samples: Tensor) -> dict[str, float]:
        """Held-out metrics from the exact density.

        precision: share with a density above the 0.5 % quantile of real samples. coverage: share of modes
        with over a quarter of their mass. tv: total variation of mode occupancy, off-manifold mass counted as error, mean over
        classes. sliced_wasserstein, mmd: to real samples, per class. diversity: mean pair distance over that of real samples.
        """
        draws = generator(0, "modes2d evaluation")
        real = self._points(labels, draws)
        floor = self.log_density(real, labels).quantile(0.005)
        inside = self.log_density(media, labels) > floor
        nearest = (media[:, None] - self.means[labels]).square().sum(-1).argmin(1)
        occupancy = torch.zeros(self.num_classes, len(self.weights))
        for c in range(self.num_classes):
            of_class = labels == c
            occupancy[c] = torch.bincount(nearest[of_class & inside], minlength=len(self.weights)) / of_class.sum()
        off = 1 - occupancy.sum(1)
        by_class = [(media[labels == c], real[labels == c]) for c in range(self.num_classes)]

        def average(distance: Callable[[Tensor, Tensor], float]) -> float:
            return sum(distance(a, b) for a, b in by_class) / self.num_classes

        return {
            "precision": inside.float().mean().item(),
            "coverage": (occupancy > self.weights / 4).float().mean().item(),
            "tv": (((occupancy - self.weights).abs().sum(1) + off) / 2).mean().item(),
            "sliced_wasserstein": average(measure.sliced_wasserstein),
            "mmd": average(measure.mmd),
            "diversity": average(measure.diversity_ratio),
        }

    def drawing(self, media: Tensor, labels: Tensor) -> Callable[[Any, int], None]:
        """A scatter plot coloured by class, over faint rings where the modes are."""
        colours = "tab10" if self.num_classes <= 10 else "hsv"

        def draw(axes: Any, frame: int) -> None:
            for mean in self.means.flatten(0, 1).tolist():
                axes.add_patch(_circle(mean, 2.5 * self.std))
            axes.scatter(media[:, 0], media[:, 1], c=labels, s=2.5, cmap=colours, linewidths=0)
            axes.set(xlim=(-self.reach, self.reach), ylim=(-self.reach, self.reach), xticks=[], yticks=[], aspect="equal")

        return draw

    def _points(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        mode = torch.multinomial(self.weights, len(labels), replacement=True, generator=generator)
        return self.means[labels, mode] + self.std * torch.randn(len(labels), 2, generator=generator)

    def _anywhere(self, count: int, generator: torch.Generator) -> Tensor:
        return self.reach * (2 * torch.rand(count, 2, generator=generator) - 1)


def _polar(radius: Tensor, angle: Tensor) -> Tensor:
    return torch.stack((radius * angle.cos(), radius * angle.sin()), -1)


def _pinwheel(classes: int, modes: int) -> Tensor:
    step = torch.arange(modes)
    angle = 2 * math.pi * torch.arange(classes)[:, None] / classes + 0.3 * step
    return _polar((1.2 + 0.5 * step).expand_as(angle), angle)


def _ring(classes: int, modes: int) -> Tensor:
    centre = _polar(torch.full((classes,), 2.0), 2 * math.pi * torch.arange(classes) / classes)
    around = _polar(torch.full((modes,), 0.4), 2 * math.pi * torch.arange(modes) / modes)
    return centre[:, None] + around


def _grid(classes: int, modes: int) -> Tensor:
    edge = math.ceil(math.sqrt(classes * modes))
    index = torch.arange(classes * modes)
    points = torch.stack((index % edge, index // edge), -1) - (edge - 1) / 2
    return (4.0 / max(edge - 1, 1) * points).reshape(modes, classes, 2).transpose(0, 1)


_GEOMETRIES = {"pinwheel": _pinwheel, "ring": _ring, "grid": _grid}


def _circle(centre: list[float], radius: float) -> Any:
    from matplotlib.patches import Circle

    return Circle((centre[0], centre[1]), radius, fill=False, edgecolor="0.8", linewidth=0.6)
