"""A user's own prompts, with or without pictures, as a task: the data that a pipeline from disk is distilled on.

Its held-out metrics need no other model; trained metrics are rewards.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
import torch
from PIL import Image, ImageOps
from pydantic import Field
from torch import Tensor, nn

from amd_plugin import metrics as measure
from amd_plugin.data.plain_text import surely_readable
from amd_plugin.errors import InputError, OptionError

if TYPE_CHECKING:
    from amd_plugin.data.prompt_rows import PromptRows, Row

ROWS = 8  # prompts in a picture of samples
RESERVED = {"self", "media", "prompts"}  # arguments of every reward


class Prompts:
    """Prompts from a file, a folder or the hub. A label is a row of their endless, reshuffled order.

    Args:
        source: .txt (a prompt per line), .jsonl, .json, .csv, .tsv, .parquet; a folder of images or parquet files; or a hub id.
        column: column of the prompts; by default prompt, text or caption.
        image_column: column of the pictures, for ``train.rollout: data`` and adversarial losses.
        config: name of the part of a hub data set that has several.
        split: split of a hub data set, or of a folder of parquet files.
        revision: revision of a hub data set; a commit hash pins it.
        streaming: whether rows are read as they are needed instead of preparing the whole set first.
        shuffle: whether each epoch has a random order of its own.
        held_out: source of prompts for the evaluation, in the same formats; by default the first prompts of `source`.
        per_prompt: number of evaluation samples per prompt.
    """

    name: ClassVar[str] = "prompts"
    metrics: ClassVar[dict[str, str]] = {"diversity": "up", "saturation": "down", "contrast": "up"}
    in_pixels: ClassVar[bool] = True
    media_channels: ClassVar[int] = 3
    num_classes = 0
    seed = 0
    KEPT: ClassVar[int] = 4096

    def __init__(
        self,
        *,
        source: str,
        column: str | None = None,
        image_column: str | None = None,
        config: str | None = None,
        split: str = "train",
        revision: str | None = None,
        streaming: bool = False,
        shuffle: bool = True,
        held_out: str | None = None,
        per_prompt: Annotated[int, Field(ge=2)] = 4,
    ):
        options: dict[str, Any] = {"config": config, "split": split, "revision": revision, "streaming": streaming}
        self._source = options | {"source": source, "column": column, "image_column": image_column, "shuffle": shuffle}
        # A text file has no columns.
        held_out_column = None if held_out is None or held_out.lower().endswith(".txt") else column
        self._held_out_source: dict[str, Any] = {
            "source": held_out, "column": held_out_column, "shuffle": False, "key": "data.held_out",
        }  # fmt: skip
        plain = column is None and image_column is None and config is None and split == "train" and not streaming
        if not (plain and surely_readable(source)):
            self._rows  # noqa: B018 (opened at once, so that what is wrong with it is said while the recipe is checked)
        if held_out and not surely_readable(held_out):
            self._held_out  # noqa: B018
        self.has_samples = image_column is not None
        self._per_prompt = per_prompt
        self._pictured: dict[int, PromptRows] = {}
        self._seen: dict[int, Row] = {}
        self._evaluated = 0
        self.sample_shape: tuple[int, ...] = ()
        self.made_of: dict[str, Any] = {"task": self.name, "source": source, "column": column, **options}

    @cached_property
    def _rows(self) -> PromptRows:
        from amd_plugin.data.prompt_rows import PromptRows  # seconds to import

        return PromptRows(**self._source)

    @cached_property
    def _held_out(self) -> PromptRows | None:
        from amd_plugin.data.prompt_rows import PromptRows

        return PromptRows(**self._held_out_source) if self._held_out_source["source"] else None

    def draw_labels(self, position: int, count: int, generator: torch.Generator) -> Tensor:
        """The `position`-th `count` rows: their numbers [count]."""
        return torch.arange(position * count, (position + 1) * count)

    def prompts(self, labels: Tensor) -> list[str]:
        """The prompts of the rows `labels` [B]."""
        return [row.prompt for row in self._lookup(labels)]

    def columns(self, labels: Tensor) -> dict[str, list[Any]]:
        """The other columns of the rows `labels` [B], for rewards that name them, but for `RESERVED` ones."""
        rows = self._lookup(labels)
        return {name: [row.columns.get(name) for row in rows] for name in rows[0].columns if name not in RESERVED}

    def asked_for(self, rows: int, evaluated: int) -> Iterator[str]:
        """Prompts of the first `rows` rows and of an evaluation of `evaluated` samples."""
        last = min(rows, self._rows.num_rows or rows)
        parts = (self._rows.rows(start, min(256, last - start), images=False) for start in range(0, last, 256))
        training = (row.prompt for part in parts for row in part)
        return itertools.chain(training, self.prompts(self.balanced_labels(evaluated)))

    def balanced_labels(self, count: int) -> Tensor:
        """Labels of at most `count` samples, `per_prompt` for each prompt; held-out prompts have negative labels."""
        self._evaluated = max(1, count // self._per_prompt)
        prompts = torch.arange(self._evaluated).repeat_interleave(self._per_prompt)
        return -1 - prompts if self._held_out_source["source"] else prompts

    def training_data(
        self, count: int, generator: torch.Generator, position: int = 0, pixels: tuple[int, int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """(images [B, 3, H, W] in [-1, 1], their rows [B]), the `position`-th `count` rows, cropped to `pixels` (H, W).

        Raises:
            InputError: for a data set without `image_column`.
        """
        labels = self.draw_labels(position, count, generator)
        # Each stride has its own position in a stream: with one for all, each change would read it from the start.
        source = self._pictured.setdefault(count, self._rows.again())
        images = []
        for label, row in zip(labels.tolist(), source.rows(position * count, count), strict=True):
            if row.image is None:
                raise InputError(
                    "data.image_column: real pictures are needed (train.rollout, train.real), got no column for them"
                )
            self._seen[label] = row._replace(image=None)
            height, width = pixels or (row.image.height, row.image.width)
            picture = ImageOps.fit(_rgb(row.image), (width, height))
            images.append(torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1).float() / 127.5 - 1)
        return torch.stack(images), labels

    def real_data(self, count: int, generator: torch.Generator, pixels: tuple[int, int] | None = None) -> tuple[Tensor, Tensor]:
        """The same, of the first `count` rows."""
        return self.training_data(count, generator, pixels=pixels)

    def to_media(self, samples: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] of images in [-1, 1]."""
        return samples / 2 + 0.5

    def classifier(self) -> nn.Module:
        """Raises OptionError: prompts have no classes."""
        raise OptionError("name", "the classifier reward belongs to tasks with classes; prompts need a reward that reads them")

    def judge(self) -> None:
        """None: `evaluate.features` names a model for distances between sets of samples."""
        return None

    def evaluate(self, media: Tensor, labels: Tensor, samples: Tensor) -> dict[str, float]:
        """Over pixels. diversity: mean distance of two samples of a prompt, per pixel. saturation: share of values at
        0 or 1, which grows when a student over-exposes. contrast: mean standard deviation within a sample, which falls when it
        collapses to flat colour.
        """
        diversity, saturation, contrast = [], [], []
        for part in media.split(self._per_prompt):
            pixels = part.float().flatten(1)
            diversity.append(measure.spread(pixels) / pixels.shape[1] ** 0.5)
            saturation.append(measure.saturation(pixels).mean().item())
            contrast.append(measure.contrast(pixels).mean().item())
        names = {"diversity": diversity, "saturation": saturation, "contrast": contrast}
        return {name: sum(values) / len(values) for name, values in names.items()}

    def drawing(self, media: Tensor, labels: Tensor) -> Callable[[Any, int], None]:
        """Prompts in rows, their samples in columns."""
        shown = media[: ROWS * self._per_prompt].float()
        videos = shown.unsqueeze(2) if shown.dim() == 4 else shown
        grid = videos.unflatten(0, (-1, self._per_prompt)).permute(3, 0, 4, 1, 5, 2).flatten(3, 4).flatten(1, 2)

        def draw(axes: Any, frame: int) -> None:
            axes.imshow(grid[frame].numpy(), interpolation="nearest")
            axes.set(xticks=[], yticks=[])

        return draw

    def _lookup(self, labels: Tensor) -> Sequence[Row]:
        numbers = labels.tolist()
        if len(self._seen) > self.KEPT:
            # The oldest are dropped, except the rows of the evaluation: a stream would be read from the start for them.
            dropped = set(list(self._seen)[: -self.KEPT // 2]) - set(numbers) - set(range(self._evaluated))
            self._seen = {label: row for label, row in self._seen.items() if label not in dropped}
        missing = sorted({label for label in numbers if label not in self._seen})
        for first, last in _runs(missing):
            rows = self._rows.rows(first, last - first + 1, images=False) if first >= 0 else None
            if rows is None:
                assert self._held_out is not None  # noqa: S101 (only held-out rows are negative)
                rows = self._held_out.rows(-1 - last, last - first + 1)[::-1]
            self._seen.update(zip(range(first, last + 1), rows, strict=True))
        return [self._seen[label] for label in numbers]


def _rgb(image: Image.Image) -> Image.Image:
    """`image` in 8 bits per channel. PIL alone clips grey pictures of 16 bits to white."""
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image) / 257).clip(0, 255).astype(np.uint8))
    return image.convert("RGB")


def _runs(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(first, last) of every run of consecutive `numbers` on one side of zero."""
    start = 0
    for index in range(1, len(numbers) + 1):
        ends = index == len(numbers) or numbers[index] != numbers[index - 1] + 1 or numbers[index] == 0
        if ends:
            yield numbers[start], numbers[index - 1]
            start = index
