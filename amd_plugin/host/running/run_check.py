"""Whether the files of a run's folder are whole: what ``amd-plugin doctor RUN`` says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from amd_plugin.doctor import Finding
from amd_plugin.errors import InputError
from amd_plugin.host import checkpoint
from amd_plugin.host.running import run_cost, run_folder, run_log
from amd_plugin.host.running.folder_kind import check_run
from amd_plugin.host.running.state_schema import RunState
from amd_plugin.plugins import PluginManager
from amd_plugin.recipe.loading import load


def examine_run(run: Path, plugins: PluginManager) -> list[Finding]:
    """One finding for every checkpoint and every other file of the run in `run`. Changes nothing.

    Raises:
        InputError: where `run` is no folder of a run.
    """
    check_run(run)
    return [finding for part in (_files(run, plugins), _checkpoints(run / "checkpoints")) for finding in part]


def _files(run: Path, plugins: PluginManager) -> Iterator[Finding]:
    yield _tried("config.yaml", lambda: load(str(run / "config.yaml"), plugins))
    yield _tried("run.json", lambda: run_folder.about(run))
    for name, read in (
        ("metrics.jsonl", lambda: run_log.read(run / "metrics.jsonl", strict=True)),
        ("cost.json", lambda: run_cost.read(run)),
        ("evaluation.json", lambda: run_folder.read_results(run)),
    ):
        if (run / name).exists():
            yield _tried(name, read)


def _checkpoints(folder: Path) -> Iterator[Finding]:
    paths = sorted(folder.glob("step-*"), key=checkpoint.step_of) if folder.is_dir() else []
    if not paths:
        yield Finding("checkpoints", "none", ok=False)
    for path in paths:
        yield _tried(path.name, partial(_read_through, path))


def _read_through(path: Path) -> None:
    """Raises InputError unless all files of a checkpoint are as they were written, and its state is what a run can take up."""
    checkpoint.verify(path)
    checkpoint.read_state(path, RunState)


def _tried(what: str, read: Callable[[], Any]) -> Finding:
    try:
        read()
    except InputError as error:
        return Finding(what, str(error), ok=False)
    return Finding(what, "is whole")
