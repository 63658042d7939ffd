"""Pictures of samples, drawn by the task itself: PNG, or GIF where samples move."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

MILLISECONDS_PER_FRAME = 160


def picture(task: Any, panels: Mapping[str, tuple[Tensor, Tensor]], dpi: int = 110) -> tuple[bytes, str]:
    """Panels title -> (samples, labels) side by side, as the bytes of a file and its kind, ``png`` or ``gif``."""
    figure = Figure(figsize=(3.1 * len(panels), 3.4), layout="constrained", dpi=dpi)
    canvas = FigureCanvasAgg(figure)
    drawings = [task.drawing(samples, labels) for samples, labels in panels.values()]
    grid = figure.subplots(1, len(panels), squeeze=False)[0]
    frames = []
    for frame in range(task.frames):
        for axes, title, draw in zip(grid, panels, drawings, strict=True):
            axes.clear()
            draw(axes, frame)
            axes.set_title(title, fontsize=11)
            for spine in axes.spines.values():
                spine.set_color("0.85")
        canvas.draw()
        frames.append(Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB"))
    kind, file = "png" if len(frames) == 1 else "gif", io.BytesIO()
    moving = {"save_all": True, "append_images": frames[1:], "duration": MILLISECONDS_PER_FRAME, "loop": 0}
    frames[0].save(file, kind, **(moving if kind == "gif" else {}))
    return file.getvalue(), kind


def save_samples(path: Path, task: Any, title: str, samples: Tensor, labels: Tensor) -> None:
    """Writes one picture of samples [B, ...] made for `labels` [B] to `path`, whose suffix it chooses."""
    content, kind = picture(task, {title: (samples, labels)})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(f".{kind}").write_bytes(content)
