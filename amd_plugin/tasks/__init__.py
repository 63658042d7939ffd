"""The embedded tasks: small real problems with a known ground truth, for minutes on a CPU.

A task is data (as the teacher sees it, and without its flaws), a classifier for the training reward, and held-out metrics that
have nothing in common with that classifier. It holds no model and decodes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from amd_plugin.config import DataConfig
from amd_plugin.imported import Imported

if TYPE_CHECKING:  # the names of tasks must not wait for torch and datasets
    import torch
    from torch import Tensor, nn

    from amd_plugin.tasks.judge import Judge

TASKS: Mapping[str, type[Task]] = Imported(
    {
        "modes2d": "amd_plugin.tasks.modes2d:Modes2D",
        "digits": "amd_plugin.tasks.digits:Digits",
        "moving_digits": "amd_plugin.tasks.moving_digits:MovingDigits",
        "scenes": "amd_plugin.tasks.scenes.task:Scenes",
        "prompts": "amd_plugin.data.prompts:Prompts",
    }
)


def task_of(config: DataConfig, seed: int) -> Task:
    """The task of a recipe's section ``data`` in a run of `seed`.

    Raises:
        KeyError: for an unknown task.
        InputError: for data that cannot be read; OptionError, which names the key, for options that do not fit.
    """
    task = TASKS[config.task](**config.options)
    task.seed = seed
    return task


def check_installed(task: Task) -> None:
    """Raises MissingDependency for a task that needs a package which is not there, before networks are made."""
    getattr(task, "check_installed", lambda: None)()


class Task(Protocol):
    """The interface of a task for host, rewards and report. A batch has B samples of `sample_shape`.

    Attributes:
        name: its key in `TASKS`.
        metrics: held-out metric -> its better direction: ``up``, ``down``, or ``one`` for ratios that should be 1.
        num_classes: number of labels, which run from 0; 0 where a label is a row of a prompt set.
        in_pixels: whether `training_data` returns pictures that an autoencoder must encode.
        media_channels: channels of its media: 1 for grey pictures and videos, 3 for coloured ones.
        has_samples: whether `training_data` has any samples.
        sample_shape: shape of one sample; empty where the model decides.
        made_of: JSON-able description of everything its data depends on, for caches.
        fewest_samples: smallest evaluation; a task without the attribute needs five samples per class.
        drawn_rows: function of labels [B] that returns the rows [N] that `drawing` shows; it shows all of a task without it.
        check_installed: function that raises MissingDependency; a task without the attribute needs this package alone.
        credits: whom its data are from, and their licence; a task without the attribute has none to name.
        seed: seed of the run, from which the reward's classifier is trained. Held-out metrics are the same for all seeds.
    """

    name: ClassVar[str]
    metrics: ClassVar[dict[str, str]]
    in_pixels: ClassVar[bool]
    media_channels: ClassVar[int]
    has_samples: bool
    num_classes: int
    sample_shape: tuple[int, ...]
    made_of: dict[str, Any]
    seed: int

    def training_data(
        self, count: int, generator: torch.Generator, position: int = 0, pixels: tuple[int, int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """(samples [B, ...], labels [B]) as the teacher sees them, flaws included: drawn, or the `position`-th `count`.

        `pixels` (height, width) is the size of pictures whose size the model decides.
        """
        ...

    def real_data(self, count: int, generator: torch.Generator, pixels: tuple[int, int] | None = None) -> tuple[Tensor, Tensor]:
        """(samples [B, ...], labels [B]) without the flaws; `pixels` as in `training_data`."""
        ...

    def draw_labels(self, position: int, count: int, generator: torch.Generator) -> Tensor:
        """Labels [count] of the `position`-th batch, one per group; `generator` is for this batch alone."""
        ...

    def balanced_labels(self, count: int) -> Tensor:
        """Labels [count // num_classes * num_classes] in order, each equally often."""
        ...

    def prompts(self, labels: Tensor) -> list[str]:
        """The prompts of `labels` [B]."""
        ...

    def columns(self, labels: Tensor) -> dict[str, Any]:
        """Columns of the rows of `labels` [B] that rewards may ask for by name, beside media and prompts."""
        ...

    def asked_for(self, rows: int, evaluated: int) -> Iterable[str]:
        """All prompts of training on `rows` groups and of an evaluation of `evaluated` samples."""
        ...

    def to_media(self, samples: Tensor) -> Tensor:
        """Media [B, ...] of samples that are no latents: images and videos in [0, 1]; points as they are."""
        ...

    def classifier(self) -> nn.Module:
        """A network from media [B, ...] to logits [B, num_classes + 1], the last for "none of them"; trained here, cached.

        Raises:
            OptionError: for a task without classes.
        """
        ...

    def judge(self) -> Judge | None:
        """The judge of single samples; None where the task has no ground truth for them."""
        ...

    def evaluate(self, media: Tensor, labels: Tensor, samples: Tensor) -> dict[str, float]:
        """All held-out metrics of samples that were asked for `labels` [B], in the order of `balanced_labels`.

        Args:
            media: [B, ...], the decoded samples, on the CPU.
            labels: [B].
            samples: [B, ...], the same before they were decoded and clamped, on the CPU.
        """
        ...

    def drawing(self, media: Tensor, labels: Tensor) -> Callable[[Any, int], None]:
        """A function ``(axes, frame)`` that draws `media` [B, ...] (CPU) made for `labels` [B] on matplotlib axes."""
        ...
