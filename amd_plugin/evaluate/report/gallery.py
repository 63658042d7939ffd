"""Pictures that lie in a run's folder: samples over time with their prompts, and teacher beside student."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from amd_plugin.evaluate.report.figures import inline
from amd_plugin.host.checkpoint.files import step_of
from amd_plugin.host.evaluation.pictures import PROMPTS

SHOWN = 8  # pictures over time


def over_time(run: Path) -> list[tuple[int, str]]:
    """(step, picture as a data URI) of the first and the last held-out evaluation and some between; empty without any."""
    found = sorted((run / "samples").glob("step-*.*"), key=step_of)
    last = len(found) - 1
    places = sorted({round(last * place / (SHOWN - 1)) for place in range(SHOWN)}) if found else []
    return [(step_of(found[place]), _picture(found[place])) for place in places]


def prompts(run: Path) -> list[str]:
    """The prompts of the rows of the run's pictures, from the top; empty for classes."""
    file = run / "samples" / PROMPTS
    return list(json.loads(file.read_text())) if file.is_file() else []


def pairs(run: Path) -> list[dict[str, Any]]:
    """Prompts with a sample of the teacher and one of the student each, of an earlier ``amd-plugin evaluate``."""
    folder = run / "evaluation"
    rows = json.loads((folder / "pairs.json").read_text()) if (folder / "pairs.json").is_file() else []
    whole = (row for row in rows if all((folder / row[role]).is_file() for role in ("teacher", "student")))
    return [
        {"prompt": row["prompt"], **{role: _picture(folder / row[role]) for role in ("teacher", "student")}} for row in whole
    ]


def newest(runs: Iterable[Path]) -> list[str]:
    """The last picture of each run that has one."""
    return [pictures[-1][1] for pictures in map(over_time, runs) if pictures]


def _picture(path: Path) -> str:
    return inline(path.read_bytes(), path.suffix[1:])
