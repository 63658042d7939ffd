"""Sizes and traces of networks, each measured once.

Those of the shipped recipes for large models come with the package, since tracing them takes half a minute. They hold for the
versions of torch, diffusers and peft that measured them, and are left aside with others. What is measured here is kept in the
user's cache. `benchmarks/plan_traces.py` writes the file anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from amd_plugin.cache import cached
from amd_plugin.json_files import read

FILE = Path(__file__).with_name("measured.json")
# One call's or role's numbers by name, as JSON has them.
Numbers = dict[str, list[Any]]
known: dict[str, Numbers] = {}


def versions() -> dict[str, str]:
    """Versions of what decides which operations run, without the build that follows a plus."""
    return {name: version(name).partition("+")[0] for name in ("torch", "diffusers", "peft")}


def measured(kind: str, made_of: Mapping[str, Any], measure: Callable[[], Numbers], *, keep: bool) -> Numbers:
    """The numbers that `measure` returns, now, earlier, or when the package was made.

    Args:
        kind: what is measured.
        made_of: everything that the numbers depend on beside code and versions; values that JSON lacks count as their text.
        measure: function that measures.
        keep: whether all code that is measured is this package's and its libraries', so that the numbers can be kept on disk.
    """
    description = json.dumps({"kind": kind, **made_of}, sort_keys=True, default=str)
    key = hashlib.sha256(description.encode()).hexdigest()[:16]
    if key not in known:
        known[key] = (keep and shipped().get(key)) or (_kept(key, measure) if keep else measure())
    return known[key]


@lru_cache
def shipped() -> dict[str, Numbers]:
    """The numbers that come with the package; none where they were measured with other versions."""
    content = json.loads(FILE.read_text(encoding="utf-8"))
    numbers: dict[str, Numbers] = content["numbers"] if content["versions"] == versions() else {}
    return numbers


def _kept(key: str, measure: Callable[[], Numbers]) -> Numbers:
    name = "numbers.json"
    made_of = {"key": key, "peft": version("peft"), "code": _code()}
    folder = cached("plan", made_of, lambda draft: _write(draft / name, measure()))
    return read(folder / name, dict[str, list[Any]], "Delete the folder")


def _write(path: Path, numbers: Numbers) -> None:
    path.write_text(json.dumps(numbers), encoding="utf-8")


@lru_cache
def _code() -> str:
    """A hash of the source that measures; the cache itself looks after the models'."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256("".join(path.read_text(encoding="utf-8") for path in files).encode()).hexdigest()
