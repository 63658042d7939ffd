"""What a run costs on its machine: cost.json, apart from metrics.jsonl, which is equal for equal runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from amd_plugin.atomic import write_text
from amd_plugin.disk import dispensable
from amd_plugin.json_files import read as read_json

FILE = "cost.json"


class Cost(NamedTuple):
    """The cost of a run since its last start.

    Attributes:
        seconds_per_update: mean time of a student update with the updates of the fake score before it, without evaluations.
        gigabytes: most memory that the main process has used: of its GPU where it has one, else of the machine.
    """

    seconds_per_update: float
    gigabytes: float


def write(run: Path, cost: Cost) -> None:
    """Writes the cost of the run in `run`; a disk that does not take it gets a warning."""
    if not run.is_dir():  # somebody has moved the run away: a folder with its cost alone would be in the way
        return
    with dispensable(run / FILE, "the report will not say what the run cost"):
        write_text(run / FILE, json.dumps(cost._asdict()))


def values_in(run: Path) -> dict[str, float]:
    """What cost.json of the run in `run` says; empty where there is none. Raises InputError for a damaged file.

    A run of a comparison also has ``processor_seconds`` there, which `amd_plugin.evaluate.comparison` adds.
    """
    file = run / FILE
    return read_json(file, dict[str, float], "Remove it: only the report's cost is lost") if file.exists() else {}


def read(run: Path) -> Cost | None:
    """The cost of the run in `run`; None where it is unknown. Raises InputError for a damaged file."""
    values = values_in(run)
    return Cost(**{name: values[name] for name in Cost._fields}) if set(Cost._fields) <= set(values) else None
