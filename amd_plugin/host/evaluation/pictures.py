"""Pictures of samples, drawn by the task itself: PNG, or GIF of videos."""

from __future__ import annotations

import gc
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image, ImageOps
from torch import Tensor

from amd_plugin.atomic import write_bytes
from amd_plugin.disk import regular
from amd_plugin.errors import InputError
from amd_plugin.tasks import Task

MILLISECONDS_PER_FRAME = 160
MARGIN = 6  # pixels of white around a picture
PROMPTS = "prompts.json"  # beside the pictures: the prompts of their rows
LARGEST = 2**28  # bytes of a picture that is shown


def frames_of(media: Tensor) -> int:
    """Number of frames of `media` [B, ...]: T of videos [B, C, T, H, W], 1 of anything else."""
    return media.shape[2] if media.dim() == 5 else 1


def as_written(figure: Figure) -> Figure:
    """`figure`, whose texts stand there as they are: dollars in somebody's names are no formula, nor an error in one."""
    for text in figure.findobj(Text):
        text.set_parse_math(False)
    return figure


def drawable(values: np.ndarray) -> np.ndarray:
    """`values`, with NaN for what is not finite or beyond single precision, in which metrics are: no axis can show it."""
    return np.where(np.abs(values) <= np.finfo(np.float32).max, values, np.nan)


def picture(task: Task, panels: Mapping[str, tuple[Tensor, Tensor]], dpi: int = 110) -> tuple[bytes, str]:
    """Panels title -> (media [B, ...], labels [B]) side by side, as (bytes of a file, its kind ``png`` or ``gif``)."""
    figure = Figure(figsize=(3.1 * len(panels), 3.4), layout="constrained", dpi=dpi)
    canvas = FigureCanvasAgg(figure)
    drawings = [task.drawing(media, labels) for media, labels in panels.values()]
    grid = figure.subplots(1, len(panels), squeeze=False)[0]
    frames = []
    for frame in range(max(frames_of(media) for media, _ in panels.values())):
        for axes, title, draw in zip(grid, panels, drawings, strict=True):
            axes.clear()
            draw(axes, frame)
            axes.set_title(title, fontsize=11)
            for spine in axes.spines.values():
                spine.set_color("0.85")
        as_written(figure)
        canvas.draw()
        frames.append(Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB"))
    frames = _trimmed(frames)
    kind, file = "png" if len(frames) == 1 else "gif", io.BytesIO()
    animation: dict[str, Any] = {
        "save_all": True, "append_images": frames[1:], "duration": MILLISECONDS_PER_FRAME, "loop": 0,
    }  # fmt: skip
    frames[0].save(file, kind, **(animation if kind == "gif" else {}))
    return file.getvalue(), kind


def _trimmed(frames: list[Image.Image]) -> list[Image.Image]:
    """`frames` without the white around all of them: panels are as high as their width and titles leave them."""
    boxes = [box for frame in frames if (box := ImageOps.invert(frame).getbbox())]
    if not boxes:
        return frames
    left, top, right, bottom = (pick(sides) for pick, sides in zip((min, min, max, max), zip(*boxes, strict=True), strict=True))
    width, height = frames[0].size
    around = (max(0, left - MARGIN), max(0, top - MARGIN), min(width, right + MARGIN), min(height, bottom + MARGIN))
    return [frame.crop(around) for frame in frames]


def save_samples(path: Path, task: Task, title: str, media: Tensor, labels: Tensor) -> Path:
    """Writes one picture of `media` [B, ...] made for `labels` [B] to `path` with the suffix ``.png`` or ``.gif``; its file."""
    content, kind = picture(task, {title: (media, labels)})
    file = path.with_suffix(f".{kind}")
    write_bytes(file, content)
    gc.collect()  # a figure is a cycle with its canvas, half a megabyte, and Python looks for old cycles too rarely
    return file


def read_picture(path: Path) -> tuple[bytes, str]:
    """(bytes, kind ``png``, ``gif`` or ``jpeg``) of the picture at `path`, for a report or a card that others will see.

    Raises:
        InputError: for anything else. In a stranger's folder it may be a link to a secret of whoever makes the report.
    """
    try:
        if (size := regular(path).stat().st_size) > LARGEST:
            raise InputError(f"{path}: is no picture to be shown: they have {LARGEST:,} bytes at most, got {size:,}")
        content = path.read_bytes()
        with Image.open(io.BytesIO(content), formats=("PNG", "GIF", "JPEG")) as picture:
            return content, str(picture.format).lower()
    except OSError as error:  # Pillow's own errors among them
        raise InputError(f"{path}: cannot be shown: {error.strerror or 'it is no PNG, GIF or JPEG'}") from error
    except (ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: cannot be shown: {error}") from error
