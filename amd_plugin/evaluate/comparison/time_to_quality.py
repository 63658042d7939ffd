"""How soon an arm is where the baseline ends: the first held-out evaluation at least as good as the baseline's last one.

Seeds are paired, so that each arm chases the baseline of its own teacher and reward. An arm that passes by luck and falls back
has passed; the median over several seeds answers that, and an arm that does not get there in half of them has no median.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from amd_plugin.evaluate.directions import Direction, badness

Lines = Sequence[Mapping[str, Any]]  # of a metrics.jsonl
EVALUATIONS = 4  # fewer say little about when


def updates_to_quality(curves: Mapping[str, Lines], baseline: str, metric: str, direction: Direction) -> dict[str, int | None]:
    """Student updates until each arm of one seed is as good in `metric` as the baseline at its end; None: never.

    Args:
        curves: the arms' lines of metrics, by arm.
        baseline: the arm whose last evaluation is the aim.
        metric: a held-out metric.
        direction: the direction in which it is better.

    Returns:
        Updates by arm; empty where the baseline was evaluated fewer than four times.

    Example:
        >>> slow = [{"step": step, "held_out/accuracy": 0.1 * step} for step in (1, 2, 3, 4)]
        >>> fast = [{"step": step, "held_out/accuracy": 0.2 * step} for step in (1, 2, 3, 4)]
        >>> updates_to_quality({"dmd": slow, "amd": fast}, "dmd", "accuracy", "up")
        {'dmd': 4, 'amd': 2}
    """
    evaluations = {arm: _evaluations(lines, f"held_out/{metric}") for arm, lines in curves.items()}
    if len(evaluations[baseline]) < EVALUATIONS:
        return {}
    aim = badness(evaluations[baseline][-1][1], direction)
    return {
        arm: next((step for step, value in found if badness(value, direction) <= aim), None)
        for arm, found in evaluations.items()
    }


def median_updates(updates: Sequence[int | None]) -> float | None:
    """Median over seeds, in which an arm that never gets there comes last; None where that is the median.

    Example:
        >>> median_updates([100, None, 300])
        300
        >>> median_updates([100, None, None])
    """
    median = statistics.median(float("inf") if number is None else number for number in updates)
    return None if median == float("inf") else median


def _evaluations(lines: Lines, key: str) -> list[tuple[int, float]]:
    return [(int(line["step"]), line[key]) for line in lines if key in line]
