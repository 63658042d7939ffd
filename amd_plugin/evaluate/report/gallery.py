"""Pictures that lie in a run's folder: samples over time with their prompts, and teacher beside student.

The folder may be somebody else's. What is no picture, or lies elsewhere, is left out with a warning.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from pydantic import BaseModel, field_validator

from amd_plugin.errors import InputError
from amd_plugin.evaluate.report.figures import inline
from amd_plugin.host.checkpoint.files import step_of
from amd_plugin.host.evaluation.pictures import PROMPTS, read_picture
from amd_plugin.json_files import read

SHOWN = 8  # pictures over time

log = logging.getLogger(__name__)

Entry = TypeVar("Entry")


class Pair(BaseModel):
    """An entry of pairs.json.

    Attributes:
        prompt: prompt of both.
        teacher, student: their pictures, by their paths in the evaluation's folder.
    """

    prompt: str
    teacher: str
    student: str

    @field_validator("teacher", "student")
    @classmethod
    def _inside(cls, name: str) -> str:
        if ".." in (path := PurePosixPath(name)).parts or path.is_absolute():
            raise ValueError("must lie in the evaluation's folder")
        return name


def over_time(runs: Mapping[str, Path]) -> list[tuple[int, dict[str, str]]]:
    """The first and the last held-out evaluation that all runs have drawn, and some between; empty without any.

    Args:
        runs: arm -> folder of its run. One without pictures is left out.

    Returns:
        (step, arm -> picture as a data URI) in the order of the steps.
    """
    found = {arm: files for arm, run in runs.items() if (files := _by_step(run))}
    steps = sorted(set.intersection(*map(set, found.values()))) if found else []
    places = sorted({round((len(steps) - 1) * place / (SHOWN - 1)) for place in range(SHOWN)}) if steps else []
    shown = [(steps[place], {arm: _picture(files[steps[place]]) for arm, files in found.items()}) for place in places]
    return [(step, pictures) for step, pictures in shown if all(pictures.values())]


def prompts(run: Path) -> list[str]:
    """The prompts of the rows of the run's pictures, from the top; empty for classes."""
    return _entries(run / "samples" / PROMPTS, str)


def pairs(run: Path) -> list[dict[str, Any]]:
    """Prompts with a sample of the teacher and one of the student each, of an earlier ``amd-plugin evaluate``."""
    folder = run / "evaluation"
    rows = [
        {"prompt": row.prompt, "teacher": _picture(folder / row.teacher), "student": _picture(folder / row.student)}
        for row in _entries(folder / "pairs.json", Pair)
    ]
    return [row for row in rows if all(row.values())]


def newest(runs: Iterable[Path]) -> list[str]:
    """The last picture of each run that has one."""
    return [shown for files in map(_by_step, runs) if files and (shown := _picture(files[max(files)]))]


def _by_step(run: Path) -> dict[int, Path]:
    return {step_of(file): file for file in (run / "samples").glob("step-*.*")}


def _entries(path: Path, kind: type[Entry]) -> list[Entry]:
    """The list in the JSON file `path`; empty where there is none, or it is damaged, with a warning."""
    try:
        return read(path, list[kind], "The report goes without it") if path.exists() else []  # type: ignore[valid-type]
    except InputError as error:
        log.warning("%s", error)
        return []


def _picture(path: Path) -> str:
    """The picture at `path` as a data URI; empty where it is none, with a warning."""
    try:
        return inline(*read_picture(path))
    except InputError as error:
        log.warning("%s; it is left out", error)
        return ""
