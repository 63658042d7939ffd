"""Whether the files of a run's folder are whole: what ``amd-plugin doctor RUN`` says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from amd_plugin import plugin_files
from amd_plugin.disk import regular
from amd_plugin.doctor import Finding
from amd_plugin.errors import InputError, unreadable_is_input_error
from amd_plugin.host import checkpoint
from amd_plugin.host.checkpoint.files import SET_ASIDE
from amd_plugin.host.running import recipe_changes, run_cost, run_description, run_log, student_files
from amd_plugin.host.running.folder_kind import check_run
from amd_plugin.host.running.state_schema import RunState
from amd_plugin.host.running.student_files import is_of_earlier_version
from amd_plugin.json_files import read
from amd_plugin.plugins import PluginManager
from amd_plugin.recipe.loading import load

WHOLE = "is whole"
OF_EVALUATE = ("drawn.json", "pairs.json", "evaluation.json")
LATER, AGAIN = "The next evaluation of the run writes it anew", "amd-plugin evaluate writes it anew"


def examine_run(run: Path, plugins: PluginManager) -> list[Finding]:
    """One finding for every part of the run in `run` that can be told to be whole, and one for the rest. Changes nothing.

    Raises:
        InputError: where `run` is no folder of a run.
    """
    check_run(run)
    parts = (_files(run, plugins), _student(run), _checkpoints(run), _not_looked_at(run))
    return [finding for part in parts for finding in part]


def _files(run: Path, plugins: PluginManager) -> Iterator[Finding]:
    yield _tried("config.yaml", lambda: load(str(run / "config.yaml"), plugins))
    yield _tried("run.json", lambda: run_description.about(run))
    readers: dict[str, Callable[[], Any]] = {
        "metrics.jsonl": lambda: run_log.read(run / "metrics.jsonl", strict=True),
        "cost.json": lambda: run_cost.read(run),
        "evaluation.json": lambda: recipe_changes.read_results(run),
        "trackers.json": lambda: read(
            run / "trackers.json", dict[str, str], "A continued run begins a new one in its trackers"
        ),
        "samples/prompts.json": lambda: read(run / "samples" / "prompts.json", list[str], LATER),
        "samples/latest.safetensors": lambda: _tensors(run / "samples" / "latest.safetensors"),
        **{f"evaluation/{name}": partial(read, run / "evaluation" / name, Any, AGAIN) for name in OF_EVALUATE},
    }
    for name, reader in readers.items():
        if _is_there(run / name):
            yield _tried(name, reader)


def _student(run: Path) -> Iterator[Finding]:
    """The student, of which a finished run has one."""
    folder = run / "student"
    if _is_there(folder) or _is_there(run / "evaluation.json"):
        yield _tried("student", partial(_as_exported, folder, f". {plugin_files.command('export', run)} writes it anew"))


def _as_exported(folder: Path, advice: str) -> str:
    with unreadable_is_input_error(f"{folder}: cannot be read", advice):
        if is_of_earlier_version(folder):
            return "not looked at, since an earlier version wrote it without checksums"
        if problem := student_files.problem(folder):
            raise InputError(f"{problem}{advice}")
    return WHOLE


def _checkpoints(run: Path) -> Iterator[Finding]:
    """Checkpoints, those that were set aside, and updates that were not finite, which are written alike."""
    folder = run / "checkpoints"
    paths = sorted(folder.glob("step-*"), key=checkpoint.step_of) if folder.is_dir() else []
    if not paths:
        yield Finding("checkpoints", "none", ok=False)
    for path in paths:
        finding = _tried(path.name, partial(_read_through, path))
        if not finding.ok and not _is_there(path):  # a run at work keeps the newest alone, and reading takes minutes
            finding = Finding(path.name, "was removed by the run meanwhile")
        yield finding
    for path in sorted((folder / SET_ASIDE).glob("step-*")):
        yield _tried(f"{SET_ASIDE}/{path.name}", partial(_set_aside, path))
    for path in sorted((run / "nonfinite").glob("step-*")):
        yield _tried(f"nonfinite/{path.name}", partial(checkpoint.verify, path))


def _not_looked_at(run: Path) -> Iterator[Finding]:
    """What is in the folder and has neither a checksum nor a form that could be checked."""
    there = [name for name in ("report.html", "tensorboard", "evaluation/latents") if _is_there(run / name)]
    pictures = [name for name in ("samples", "evaluation") if any((run / name).rglob("*.[pgm][nip][gf4]"))]
    if names := [*(f"pictures in {name}" for name in pictures), *there]:
        yield Finding("not looked at", ", ".join(names))


def _tensors(path: Path) -> None:
    with unreadable_is_input_error(f"{path}: cannot be read", f" {LATER}"):
        load_file(regular(path))


def _read_through(path: Path) -> None:
    """Raises InputError unless all files of a checkpoint are as they were written, and its state is what a run can take up."""
    checkpoint.verify(path)
    checkpoint.read_state(path, RunState)


def _set_aside(path: Path) -> str:
    """What a checkpoint is that no run goes on from: some were set aside because they are damaged."""
    try:
        _read_through(path)
    except InputError:
        return "is damaged, and nothing needs it"
    return WHOLE


def _is_there(path: Path) -> bool:
    """Whether something is at `path`, or nobody may look."""
    try:
        return path.exists()
    except OSError:
        return True


def _tried(what: str, read: Callable[[], Any]) -> Finding:
    """What reading a part says of it; a text that is returned is what is found."""
    try:
        found = read()
    except InputError as error:
        return Finding(what, str(error), ok=False)
    return Finding(what, found if isinstance(found, str) else WHOLE)
