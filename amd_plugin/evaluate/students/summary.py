"""Measurements as table rows: every metric with its interval, the teacher's value, and the paired difference."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from amd_plugin import metrics as of
from amd_plugin.evaluate.directions import MEASURED
from amd_plugin.evaluate.students.bootstrap import Interval, mean_interval, spread_interval
from amd_plugin.evaluate.students.measure import Measurements

# Neighbours in precision, recall, density and coverage.
K = 3

Row = dict[str, Any]


def rows(
    student: Measurements, teacher: Measurements | None, reference: Tensor | None, seed: int, by_prompt: bool
) -> list[Row]:
    """One row per metric: ``name, better, value, low, high, n``, and ``teacher`` and ``difference`` where there is a teacher.

    Args:
        student: measurements of the student's samples.
        teacher: measurements of the teacher's samples, from the same noise; None where there are none.
        reference: features [M, D] that the samples are compared with; None leaves distances out.
        seed: seed of the bootstrap.
        by_prompt: whether prompts are resampled. Classes are no sample of classes, so with classes samples are resampled.
    """
    table = []
    owners = student.owners if by_prompt else None
    for name, values in student.each.items():
        of_teacher = None if teacher is None else teacher.each.get(name)
        table.append(_row(name, _mean(name, values, owners, of_teacher, seed)))
    for name, values in student.by_group.items():
        of_teacher = None if teacher is None else teacher.by_group.get(name)
        table.append(_row(name, _mean(name, values, None, of_teacher, seed)))
    if reference is not None:
        features = None if teacher is None or reference is teacher.features else teacher.features
        table = [*_distances(student, reference, features, seed, owners), *table]
    return table


def _row(name: str, content: Row) -> Row:
    return {"name": name, "better": MEASURED.get(name, "up"), **content}


def _mean(name: str, values: Tensor, owners: Tensor | None, of_teacher: Tensor | None, seed: int) -> Row:
    row = {**_fields(mean_interval(values, owners, seed=seed, key=name)), "n": int(values.isfinite().sum())}
    if of_teacher is not None:
        row["teacher"] = _fields(mean_interval(of_teacher, owners, seed=seed, key=name))
        # Paired sample by sample from the same noise, so that the influence of prompt and noise cancels.
        row["difference"] = _fields(mean_interval(values - of_teacher, owners, seed=seed, key=f"{name} difference"))
    return row


def _distances(
    student: Measurements, reference: Tensor, of_teacher: Tensor | None, seed: int, owners: Tensor | None
) -> list[Row]:
    """Rows of the distances between the student's features and `reference`; `of_teacher` are the teacher's features."""
    features = student.features
    groups = student.owners if owners is not None else student.owners.new_tensor(range(len(features)))
    frechet = spread_interval(lambda at: of.frechet_distance(reference, features[at]), groups, seed=seed, key="frechet")
    # A distance is never negative, however wide its interval.
    frechet = frechet._replace(low=max(frechet.low, 0.0) if math.isfinite(frechet.low) else frechet.low)
    neighbours = of.neighbours(reference, features, K)
    teacher_neighbours = None if of_teacher is None else of.neighbours(reference, of_teacher, K)
    table = [_row("frechet", {**_fields(frechet), "n": len(features)})]
    if of_teacher is not None:
        table[0]["teacher"] = {"value": _number(of.frechet_distance(reference, of_teacher))}
    for name, values in neighbours._asdict().items():
        # Precision and density have one value per generated sample; recall and coverage have one per reference sample.
        groups_of_values = owners if name in ("precision", "density") else None
        row = _row(name, {**_fields(mean_interval(values, groups_of_values, seed=seed, key=name)), "n": len(values)})
        if teacher_neighbours is not None:
            row["teacher"] = {"value": getattr(teacher_neighbours, name).mean().item()}
        table.append(row)
    return table


def _fields(interval: Interval) -> Row:
    """The fields of an interval for JSON; an interval has both ends or none."""
    low, high = _number(interval.low), _number(interval.high)
    ends = {"low": None, "high": None} if low is None or high is None else {"low": low, "high": high}
    return {"value": _number(interval.value), **ends}


def _number(value: float) -> float | None:
    """`value` for JSON, which has neither NaN nor infinities: None stands for both."""
    return value if math.isfinite(value) else None
