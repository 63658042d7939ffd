"""Pictures of samples, drawn by the task itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor


def save_samples(path: Path, task: Any, samples: Tensor, labels: Tensor) -> None:
    """Writes one picture of samples [B, ...] made for `labels` [B] to `path`."""
    figure = Figure(figsize=(4, 4), layout="constrained")
    task.draw(figure.subplots(), samples, labels)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
