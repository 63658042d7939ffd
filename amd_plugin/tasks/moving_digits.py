"""scikit-learn's handwritten digits moving over a small canvas, with prompts like "a 3 moving left": video with a ground truth.

As for still digits, one half of the images trains the reward's network, the other half the judge, a network of another kind.
The teacher sees all images, a share of them under prompts for another digit.
"""

from collections.abc import Callable
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from amd_plugin import metrics as measure
from amd_plugin.randomness import generator
from amd_plugin.tasks.classifiers import trained_classifier
from amd_plugin.tasks.digits import Digits
from amd_plugin.tasks.judge import Judge

EDGE, FRAMES, DIGIT, SPEED = 16, 3, 8, 4
DIRECTIONS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}


class MovingDigits:
    """Videos [1, 3, 16, 16] in [-1, 1] of a digit that crosses the canvas, four pixels per frame; 10 digits x 4 directions.

    Args:
        label_noise: share of the teacher's training videos whose prompt names a uniformly random digit.
    """

    name: ClassVar[str] = "moving_digits"
    metrics: ClassVar[dict[str, str]] = {
        "digit_accuracy": "up", "motion_accuracy": "up", "frechet": "down", "diversity": "one",
    }  # fmt: skip
    in_pixels: ClassVar[bool] = False
    media_channels: ClassVar[int] = 1
    has_samples = True
    seed = 0

    def __init__(self, *, label_noise: Annotated[float, Field(ge=0, le=1)] = 0.2):
        self._digits, self._label_noise = Digits(label_noise=0), label_noise
        self.num_classes = 10 * len(DIRECTIONS)
        self.sample_shape: tuple[int, ...] = (1, FRAMES, EDGE, EDGE)
        self.made_of: dict[str, Any] = {"task": self.name, "label_noise": label_noise}

    def training_data(
        self, count: int, generator: torch.Generator, position: int = 0, pixels: tuple[int, int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Videos [B, 1, 3, 16, 16] with the teacher's labels [B], some of which name a wrong digit."""
        videos, labels = self.real_data(count, generator)
        wrong, ways = torch.rand(count, generator=generator) < self._label_noise, len(DIRECTIONS)
        anything = ways * torch.randint(10, (count,), generator=generator) + labels % ways
        return videos, torch.where(wrong, anything, labels)

    def real_data(self, count: int, generator: torch.Generator, pixels: tuple[int, int] | None = None) -> tuple[Tensor, Tensor]:
        """Videos [B, 1, 3, 16, 16] with their true labels [B], digit * 4 + direction."""
        return self._videos(torch.arange(len(self._digits.data.labels)), count, generator)

    def draw_labels(self, position: int, count: int, generator: torch.Generator) -> Tensor:
        """Uniform over the classes."""
        return torch.randint(self.num_classes, (count,), generator=generator, device=generator.device)

    def balanced_labels(self, count: int) -> Tensor:
        """Labels in order, each count // 40 times."""
        return torch.arange(self.num_classes).repeat_interleave(count // self.num_classes)

    def prompts(self, labels: Tensor) -> list[str]:
        """``a 3 moving left``."""
        ways = list(DIRECTIONS)
        return [f"a {label // len(ways)} moving {ways[label % len(ways)]}" for label in labels.tolist()]

    def columns(self, labels: Tensor) -> dict[str, Any]:
        """``labels``."""
        return {"labels": labels}

    def asked_for(self, rows: int, evaluated: int) -> list[str]:
        """All 40 prompts."""
        return self.prompts(torch.arange(self.num_classes))

    def to_media(self, samples: Tensor) -> Tensor:
        """Videos [B, 1, 3, 16, 16] in [0, 1]."""
        return _to_unit(samples)

    def classifier(self) -> nn.Module:
        """A network that classifies the digit frame by frame and the direction from all frames; or no digit at all."""
        half = self._digits.data.reward_half

        def batch(draws: torch.Generator) -> tuple[Tensor, Tensor]:
            videos, labels = self._videos(half, 96, draws)
            junk, _ = self._videos(half, 48, draws)
            none = torch.full((48,), self.num_classes)
            return torch.cat((_noisy(_to_unit(videos), draws), _junk(_to_unit(junk), draws))), torch.cat((labels, none))

        return trained_classifier("classifier-moving-digits", self.made_of, _Reader, batch, steps=600, seed=self.seed)

    def judge(self) -> Judge:
        """The network that `evaluate` uses; a video fits if digit and direction are both right."""
        network = self._judge()
        return Judge(
            "64 features of a CNN trained on videos of the held-out half of the digits",
            lambda media: network[:-1](_to_stack(media)),
            lambda media, labels: (network(_to_stack(media)).argmax(1) == labels).float(),
        )  # fmt: skip

    def evaluate(self, media: Tensor, labels: Tensor, samples: Tensor) -> dict[str, float]:
        """Held-out metrics by a network trained on the second half, on each video as a stack of frames.

        digit_accuracy, motion_accuracy: share with the right digit, and with the right direction. frechet: distance of
        Gaussian fits in its 64 features. diversity: mean pair distance of `samples` within a prompt over that of real videos.
        """
        judge, ways = self._judge(), len(DIRECTIONS)
        real, true = self.real_data(max(len(labels), 1000), generator(0, "moving digits evaluation"))
        with torch.no_grad():
            made, reference = (judge[:-1](_to_stack(videos)) for videos in (media, _to_unit(real)))
            read = judge[-1](made).softmax(1).unflatten(1, (10, ways))
        ratios = [
            measure.diversity_ratio(samples[labels == c].flatten(1), real[true == c].flatten(1))
            for c in range(self.num_classes) if (true == c).sum() > 1
        ]  # fmt: skip
        return {
            "digit_accuracy": (read.sum(2).argmax(1) == labels // ways).float().mean().item(),
            "motion_accuracy": (read.sum(1).argmax(1) == labels % ways).float().mean().item(),
            "frechet": measure.frechet_distance(reference, made),
            "diversity": sum(ratios) / len(ratios),
        }

    def drawn_rows(self, labels: Tensor) -> Tensor:
        """The first of every prompt."""
        return torch.cat([(labels == c).nonzero()[:1, 0] for c in range(self.num_classes)])

    def drawing(self, media: Tensor, labels: Tensor) -> Callable[[Any, int], None]:
        """A sample of every prompt: digits in columns, directions in rows."""
        blank = torch.zeros(1, *self.sample_shape)
        first = torch.cat([torch.cat((media[labels == c], blank))[:1] for c in range(self.num_classes)])[:, 0]
        grid = first.unflatten(0, (10, len(DIRECTIONS))).permute(2, 1, 3, 0, 4).flatten(3, 4).flatten(1, 2)

        def draw(axes: Any, frame: int) -> None:
            axes.imshow(grid[frame], cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
            axes.set(xticks=[EDGE * (n + 0.5) for n in range(10)], yticks=[EDGE * (n + 0.5) for n in range(len(DIRECTIONS))])
            axes.set_xticklabels(range(10), fontsize=8)
            axes.set_yticklabels(DIRECTIONS, fontsize=8)
            axes.tick_params(length=0)

        return draw

    def _videos(self, images: Tensor, count: int, draws: torch.Generator) -> tuple[Tensor, Tensor]:
        """(videos, labels) of digits drawn from the rows `images` of the data set."""
        chosen = images[torch.randint(len(images), (count,), generator=draws)]
        way = torch.randint(len(DIRECTIONS), (count,), generator=draws)
        step = SPEED * torch.tensor(list(DIRECTIONS.values()))[way]
        # The middle of the path is the middle of the canvas.
        start = (EDGE - DIGIT - (FRAMES - 1) * step) // 2
        videos, inner, sample = torch.full((count, 1, FRAMES, EDGE, EDGE), -1.0), torch.arange(DIGIT), torch.arange(count)
        for frame in range(FRAMES):
            y, x = (start + frame * step).unbind(1)
            rows, columns = y[:, None, None] + inner[:, None], x[:, None, None] + inner
            videos[sample[:, None, None], 0, frame, rows, columns] = self._digits.data.images[chosen, 0]
        return videos, self._digits.data.labels[chosen] * len(DIRECTIONS) + way

    def _judge(self) -> nn.Sequential:
        half = self._digits.data.evaluation_half

        def build() -> nn.Module:
            return nn.Sequential(
                nn.Conv2d(FRAMES, 32, 5, stride=2, padding=2), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(),
                nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.AdaptiveMaxPool2d(2),
                nn.Flatten(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, self.num_classes),
            )  # fmt: skip

        def batch(draws: torch.Generator) -> tuple[Tensor, Tensor]:
            videos, labels = self._videos(half, 128, draws)
            return _to_stack(_noisy(_to_unit(videos), draws)), labels

        judge = trained_classifier("judge-moving-digits", self.made_of, build, batch, steps=900)
        assert isinstance(judge, nn.Sequential)  # noqa: S101 (for the type checker)
        return judge


class _Reader(nn.Module):
    """Media [B, 1, T, 16, 16] to log probabilities [B, 41] of digit and direction, taken as independent, and of "no digit"."""

    def __init__(self) -> None:
        super().__init__()
        self.frame = nn.Sequential(
            nn.Conv2d(1, 24, 3, stride=2, padding=1), nn.SiLU(), nn.Conv2d(24, 48, 3, padding=1), nn.SiLU(),
            nn.Conv2d(48, 64, 3, padding=1), nn.SiLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(64, 11),
        )  # fmt: skip
        self.motion = nn.Sequential(nn.Linear(FRAMES * EDGE * EDGE, 64), nn.SiLU(), nn.Linear(64, len(DIRECTIONS)))

    def forward(self, media: Tensor) -> Tensor:
        digit = self.frame(media.transpose(1, 2).flatten(0, 1)).unflatten(0, (len(media), FRAMES)).mean(1).log_softmax(1)
        joint = digit[:, :10, None] + self.motion(media.flatten(1)).log_softmax(1)[:, None]
        return torch.cat((joint.flatten(1), digit[:, 10:]), 1)


def _to_unit(pixels: Tensor) -> Tensor:
    return (pixels / 2 + 0.5).clamp(0, 1)


def _to_stack(media: Tensor) -> Tensor:
    """[B, 3, 16, 16]: frames as channels."""
    return media[:, 0]


def _noisy(media: Tensor, draws: torch.Generator) -> Tensor:
    """A little pixel noise, so that smooth generated videos are within the training distribution."""
    return (media + 0.05 * torch.randn(media.shape, generator=draws)).clamp(0, 1)


def _junk(media: Tensor, draws: torch.Generator) -> Tensor:
    """Videos that show no digit, a third each: uniform noise, even blends of two videos, videos with scrambled pixels."""
    noise, first, second = media.chunk(3)
    noise = torch.rand(noise.shape, generator=draws)
    scrambled = second.flatten(3)[..., torch.randperm(EDGE * EDGE, generator=draws)].reshape(second.shape)
    return torch.cat((noise, (first + first.roll(1, 0)) / 2, scrambled))
