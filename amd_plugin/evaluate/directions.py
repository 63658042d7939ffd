"""The direction in which a metric is better, and its words: `up`, `down`, or `one` for ratios whose best value is 1.

Metrics of a task come with their directions in `Task.metrics`; a metric that no table names is a reward, and better `up`.
"""

from __future__ import annotations

from typing import Literal

Direction = Literal["up", "down", "one"]

ARROWS: dict[Direction, str] = {"up": "↑", "down": "↓", "one": "→ 1"}
WORDS: dict[Direction, str] = {"up": "higher is better", "down": "lower is better", "one": "1 is right"}

# Metrics that `amd-plugin evaluate` computes for every task.
MEASURED: dict[str, Direction] = {
    "frechet": "down", "precision": "up", "recall": "up", "density": "up", "coverage": "up", "accuracy": "up",
    "alignment": "up", "diversity": "up", "pixel_diversity": "up", "saturation": "down", "contrast": "up", "motion": "up",
    "moving": "up", "consistency": "up",
}  # fmt: skip


def badness(value: float, direction: Direction) -> float:
    """`value` turned so that lower is better; for ratios its distance from 1."""
    return {"up": -value, "down": value, "one": abs(value - 1)}[direction]
