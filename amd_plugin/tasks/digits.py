"""scikit-learn's 1797 handwritten digits, 8 x 8: real data that is part of a wheel.

One half of the images trains the reward's classifier, the other half the classifier that evaluates. The teacher sees all
images, a share of them under random labels.
"""

from collections.abc import Callable
from functools import cached_property
from typing import Annotated, Any, ClassVar, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from amd_plugin import metrics as measure
from amd_plugin.randomness import generator
from amd_plugin.tasks.classifiers import trained_classifier
from amd_plugin.tasks.judge import Judge


class Data(NamedTuple):
    """The digits of scikit-learn.

    Attributes:
        images: images [N, 1, 8, 8] in [-1, 1].
        labels, noisy_labels: digits [N], right and as the teacher is told.
        reward_half, evaluation_half: indices of the images that reward and judge are trained on.
    """

    images: Tensor
    labels: Tensor
    noisy_labels: Tensor
    reward_half: Tensor
    evaluation_half: Tensor


class Digits:
    """Handwritten digits in [-1, 1].

    Args:
        label_noise: share of the teacher's training images with a uniformly random label; the same images in every run.
    """

    name: ClassVar[str] = "digits"
    metrics: ClassVar[dict[str, str]] = {
        "frechet": "down", "accuracy": "up", "precision": "up", "recall": "up", "diversity": "one",
    }  # fmt: skip

    in_pixels: ClassVar[bool] = False
    media_channels: ClassVar[int] = 1
    has_samples = True
    seed = 0

    def __init__(self, *, label_noise: Annotated[float, Field(ge=0, le=1)] = 0.2):
        self.num_classes = 10
        self.sample_shape: tuple[int, ...] = (1, 8, 8)
        self.made_of: dict[str, Any] = {"task": self.name, "label_noise": label_noise}

    @cached_property
    def data(self) -> Data:
        """The images, read when they are first needed: a recipe is checked without them."""
        from sklearn.datasets import load_digits  # over a second to import

        raw = load_digits()
        labels = torch.tensor(raw.target, dtype=torch.long)
        draws = generator(0, "digits")
        reward_half, evaluation_half = torch.randperm(len(labels), generator=draws).chunk(2)
        wrong = torch.rand(len(labels), generator=draws) < self.made_of["label_noise"]
        anything = torch.randint(10, labels.shape, generator=draws)
        images = torch.tensor(raw.images, dtype=torch.float32)[:, None] / 8 - 1
        return Data(images, labels, torch.where(wrong, anything, labels), reward_half, evaluation_half)

    def training_data(
        self, count: int, generator: torch.Generator, position: int = 0, pixels: tuple[int, int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Images [B, 1, 8, 8] with the teacher's labels [B], some of which are wrong."""
        index = torch.randint(len(self.data.labels), (count,), generator=generator)
        return self.data.images[index], self.data.noisy_labels[index]

    def real_data(self, count: int, generator: torch.Generator, pixels: tuple[int, int] | None = None) -> tuple[Tensor, Tensor]:
        """Images [B, 1, 8, 8] with their true labels [B]."""
        index = torch.randint(len(self.data.labels), (count,), generator=generator)
        return self.data.images[index], self.data.labels[index]

    def draw_labels(self, position: int, count: int, generator: torch.Generator) -> Tensor:
        """Uniform over the classes."""
        return torch.randint(self.num_classes, (count,), generator=generator, device=generator.device)

    def balanced_labels(self, count: int) -> Tensor:
        """Labels in order, each count // 10 times."""
        return torch.arange(10).repeat_interleave(count // 10)

    def prompts(self, labels: Tensor) -> list[str]:
        """``a handwritten 3``."""
        return [f"a handwritten {label}" for label in labels.tolist()]

    def columns(self, labels: Tensor) -> dict[str, Any]:
        """``labels``."""
        return {"labels": labels}

    def asked_for(self, rows: int, evaluated: int) -> list[str]:
        """Every digit's prompt."""
        return self.prompts(torch.arange(10))

    def to_media(self, samples: Tensor) -> Tensor:
        """Images [B, 1, 8, 8] in [0, 1]."""
        return _to_unit(samples)

    def classifier(self) -> nn.Module:
        """A CNN over ten digits and "none", trained on the first half; "none" is noise, blends and scrambled digits."""
        images, labels = _to_unit(self.data.images[self.data.reward_half]), self.data.labels[self.data.reward_half]

        def batch(draws: torch.Generator) -> tuple[Tensor, Tensor]:
            index = torch.randint(len(labels), (128,), generator=draws)
            inputs, junk = _jitter(images[index], draws), _junk(images, labels, 48, draws)
            return torch.cat((inputs, junk)), torch.cat((labels[index], torch.full((48,), 10)))

        return trained_classifier("classifier-digits", self.made_of, lambda: _cnn(11), batch, steps=400, seed=self.seed)

    def judge(self) -> Judge:
        """The CNN that `evaluate` uses."""
        network = self._judge()
        return Judge(
            "64 features of a CNN trained on the held-out half of the digits", network[:-1],
            lambda media, labels: (network(media).argmax(1) == labels).float(),
        )  # fmt: skip

    def evaluate(self, media: Tensor, labels: Tensor, samples: Tensor) -> dict[str, float]:
        """Held-out metrics by a CNN trained on the second half, against all real images.

        frechet: distance of Gaussian fits in its 64 features. accuracy: share that it classifies as asked. precision, recall: k
        nearest neighbours in its features (1904.06991). diversity: mean pair distance of `samples` in a class over that of real
        images.
        """
        judge = self._judge()
        with torch.no_grad():
            made, real = judge[:-1](media), judge[:-1](_to_unit(self.data.images))
            read = judge[-1](made).argmax(1)
        precision, recall = measure.precision_recall(real, made)
        ratios = [
            measure.diversity_ratio(samples[labels == c].flatten(1), self.data.images[self.data.labels == c].flatten(1))
            for c in range(10)
        ]
        return {
            "frechet": measure.frechet_distance(real, made),
            "accuracy": (read == labels).float().mean().item(),
            "precision": precision,
            "recall": recall,
            "diversity": sum(ratios) / 10,
        }

    def drawn_rows(self, labels: Tensor) -> Tensor:
        """The first eight of each digit."""
        return torch.cat([(labels == c).nonzero()[:8, 0] for c in range(10)])

    def drawing(self, media: Tensor, labels: Tensor) -> Callable[[Any, int], None]:
        """Eight samples of each digit, a column per digit."""
        blank = torch.zeros(8, *self.sample_shape)
        columns = [torch.cat(list(torch.cat((media[labels == c], blank))[:8, 0]), 0) for c in range(10)]

        def draw(axes: Any, frame: int) -> None:
            axes.imshow(torch.cat(columns, 1), cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
            axes.set(xticks=[], yticks=[])

        return draw

    def _judge(self) -> nn.Sequential:
        images, labels = _to_unit(self.data.images[self.data.evaluation_half]), self.data.labels[self.data.evaluation_half]

        def batch(draws: torch.Generator) -> tuple[Tensor, Tensor]:
            index = torch.randint(len(labels), (128,), generator=draws)
            return _jitter(images[index], draws), labels[index]

        judge = trained_classifier("judge-digits", self.made_of, lambda: _cnn(10), batch, steps=400)
        assert isinstance(judge, nn.Sequential)  # noqa: S101 (for the type checker)
        return judge


def _to_unit(pixels: Tensor) -> Tensor:
    return (pixels / 2 + 0.5).clamp(0, 1)


def _cnn(outputs: int) -> nn.Sequential:
    """8 x 8 images to logits; the last layer's inputs are 64 features."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1, stride=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, outputs),
    )  # fmt: skip


def _jitter(images: Tensor, draws: torch.Generator) -> Tensor:
    """A little pixel noise, so that smooth generated images are within the training distribution."""
    return (images + 0.05 * torch.randn(images.shape, generator=draws)).clamp(0, 1)


def _junk(images: Tensor, labels: Tensor, count: int, draws: torch.Generator) -> Tensor:
    """Images that show no digit, a third each: uniform noise, even blends of two digits, digits with scrambled pixels."""
    third = count // 3

    def pick() -> Tensor:
        return torch.randint(len(images), (third,), generator=draws)

    noise = torch.rand((third, *images.shape[1:]), generator=draws)
    first, second = pick(), pick()
    other = torch.where((labels[first] == labels[second])[:, None, None, None], noise, images[second])
    scrambled = images[pick()].flatten(1)[:, torch.randperm(64, generator=draws)].reshape(noise.shape)
    return torch.cat((noise, (images[first] + other) / 2, scrambled))
