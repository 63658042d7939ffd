"""Pictures that lie in a run's folder: samples over time with their prompts, and teacher beside student.

The folder may be somebody else's. What is no picture, or lies elsewhere, is left out with a warning.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
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


def over_time(run: Path) -> list[tuple[int, str]]:
    """(step, picture as a data URI) of the first and the last held-out evaluation and some between; empty without any."""
    found = sorted((run / "samples").glob("step-*.*"), key=step_of)
    last = len(found) - 1
    places = sorted({round(last * place / (SHOWN - 1)) for place in range(SHOWN)}) if found else []
    return [(step_of(found[place]), shown) for place in places if (shown := _picture(found[place]))]


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
    return [pictures[-1][1] for pictures in map(over_time, runs) if pictures]


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
