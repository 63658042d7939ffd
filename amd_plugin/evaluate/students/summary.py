"""From what was measured to a table: every metric with its interval, the teacher's, and the difference where it is paired."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from amd_plugin import metrics as of
from amd_plugin.evaluate.students.bootstrap import Interval, mean_interval, spread_interval
from amd_plugin.evaluate.students.measure import Measured

K = 3
BETTER = {
    "frechet": "down", "precision": "up", "recall": "up", "density": "up", "coverage": "up", "accuracy": "up",
    "alignment": "up", "diversity": "up", "pixel_diversity": "up", "saturation": "down", "contrast": "up", "motion": "up",
    "moving": "up", "consistency": "up",
}  # fmt: skip

Row = dict[str, Any]


def rows(student: Measured, teacher: Measured | None, reference: Tensor | None, seed: int, by_prompt: bool) -> list[Row]:
    """A row per metric: ``name, value, low, high, n, better`` and, where there is one, ``teacher`` and ``difference``.

    Args:
        reference: features [M, D] of what samples are compared with; None leaves distances out.
        seed: of the bootstrap.
        by_prompt: prompts are a sample of prompts, and are resampled; classes are all there are, and are not.
    """
    found = []
    owners = student.owners if by_prompt else None
    for name, values in student.each.items():
        theirs = None if teacher is None else teacher.each.get(name)
        found.append(_row(name, _mean(name, values, owners, theirs, seed)))
    for name, values in student.by_group.items():
        theirs = None if teacher is None else teacher.by_group.get(name)
        found.append(_row(name, _mean(name, values, None, theirs, seed)))
    if reference is not None:
        against = None if teacher is None or reference is teacher.features else teacher.features
        found = [*_distances(student, reference, against, seed, owners), *found]
    return found


def _row(name: str, content: Row) -> Row:
    return {"name": name, "better": BETTER.get(name, "up"), **content}


def _mean(name: str, values: Tensor, owners: Tensor | None, theirs: Tensor | None, seed: int) -> Row:
    row = {**_fields(mean_interval(values, owners, seed=seed, key=name)), "n": int((~values.isnan()).sum())}
    if theirs is not None:
        row["teacher"] = _fields(mean_interval(theirs, owners, seed=seed, key=name))
        # Sample by sample from the same noise: what both owe to the prompt and the noise cancels.
        row["difference"] = _fields(mean_interval(values - theirs, owners, seed=seed, key=f"{name} difference"))
    return row


def _distances(student: Measured, reference: Tensor, theirs: Tensor | None, seed: int, owners: Tensor | None) -> list[Row]:
    made = student.features
    groups = student.owners if owners is not None else student.owners.new_tensor(range(len(made)))
    frechet = spread_interval(lambda at: of.frechet_distance(reference, made[at]), groups, seed=seed, key="frechet")
    # A distance is never negative, however wide its interval.
    frechet = frechet._replace(low=max(frechet.low, 0.0) if frechet.low == frechet.low else frechet.low)
    near, other = of.neighbours(reference, made, K), None if theirs is None else of.neighbours(reference, theirs, K)
    found = [_row("frechet", {**_fields(frechet), "n": len(made)})]
    if theirs is not None:
        found[0]["teacher"] = {"value": of.frechet_distance(reference, theirs)}
    for name, values in near._asdict().items():
        # Of the made samples, or of the reference: then the made ones are taken as they are.
        belongs = owners if name in ("precision", "density") else None
        row = _row(name, {**_fields(mean_interval(values, belongs, seed=seed, key=name)), "n": len(values)})
        if other is not None:
            row["teacher"] = {"value": getattr(other, name).mean().item()}
        found.append(row)
    return found


def _fields(interval: Interval) -> Row:
    """JSON has no NaN: what is not known is null."""
    return {name: None if math.isnan(value) else value for name, value in interval._asdict().items()}
