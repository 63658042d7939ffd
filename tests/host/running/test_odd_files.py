"""Whole commands on a folder in which something is of another kind: a link, a pipe, a folder for a file, or not to be read.

It is a run's, a comparison's, that of the dump of an update that was not finite, or the cache, which no command may need. Each
command ends by itself, with an error for people or correctly, and nothing is lost: neither a checkpoint nor what a link leads to.
"""

import ctypes
import os
import shutil
import signal
from contextlib import contextmanager

import pytest

from amd_plugin import get_plugin_manager
from amd_plugin import recipe as recipes
from amd_plugin.errors import RunError
from amd_plugin.evaluate.comparison.arms import Arm
from amd_plugin.evaluate.comparison.compare import compare
from amd_plugin.evaluate.students.evaluation import evaluate
from amd_plugin.host import run
from tests.helpers.recipes import TINY

LONGEST = 120  # seconds of a command; those that wait for a pipe would wait for ever
SETTINGS = (*TINY, "train.evaluate_every=2", "train.checkpoint_every=2", "train.keep_checkpoints=3")
SET = tuple(f"--set={setting}" for setting in TINY)
NEWEST, DUMP, SEED = "run/checkpoints/step-000004", "diverged/nonfinite/step-000001", "comparison/arms/amd/seed-0"
COMMANDS = {
    "resume": lambda folder: ("train", "--resume", folder / "run", "--set=train.max_steps=5"),
    "check": lambda folder: ("train", "--resume", folder / "run", "--set=train.max_steps=5", "--dry-run"),
    "export": lambda folder: ("export", folder / "run"),
    "evaluate": lambda folder: ("evaluate", folder / "run", "--samples=40"),
    "report": lambda folder: ("report", folder / "run"),
    "doctor": lambda folder: ("doctor", folder / "run"),
    "compare": lambda folder: (
        "compare", "modes2d", "--objectives=dmd,amd", "--seeds=1", *SET, "--output", folder / "comparison"
    ),
    "report both": lambda folder: ("report", folder / "comparison"),
    "replay": lambda folder: ("replay", folder / DUMP),
    "start": lambda folder: ("train", "modes2d", *SET, "--output", folder / "another"),
}  # fmt: skip
# What lies in a folder -> the commands that read or write it.
READERS = {
    "run/config.yaml": ("check", "report", "doctor"),
    "run/run.json": ("check", "report", "doctor"),
    "run/metrics.jsonl": ("resume", "export", "report", "doctor"),
    "run/evaluation.json": ("resume", "report", "doctor"),
    "run/report.html": ("report",),
    "run/.lock": ("resume",),
    "run/.holder.json": ("resume",),
    "run/samples": ("resume", "export", "report"),
    "run/samples/step-000004.png": ("export", "report"),
    "run/samples/latest.safetensors": ("resume", "report", "doctor"),
    "run/student": ("resume", "export", "doctor"),
    "run/student/README.md": ("export",),
    "run/checkpoints": ("check", "export", "report", "doctor"),
    NEWEST: ("resume", "export", "doctor"),
    f"{NEWEST}/manifest.json": ("check", "export", "doctor"),
    f"{NEWEST}/state.json": ("check", "export", "doctor"),
    f"{NEWEST}/student.safetensors": ("check", "export", "doctor"),
    "run/evaluation": ("evaluate", "report", "doctor"),
    "run/evaluation/drawn.json": ("evaluate", "doctor"),
    "run/evaluation/pairs.json": ("report",),
    "run/evaluation/latents": ("evaluate",),
    "run/evaluation/latents/student/00000.safetensors": ("evaluate",),
    "run/evaluation/evaluation.md": ("evaluate",),
    "comparison": ("report both", "compare"),
    "comparison/compare.json": ("compare", "report both"),
    "comparison/compare.md": ("compare",),
    "comparison/report.html": ("report both",),
    SEED: ("report both", "compare"),
    f"{SEED}/evaluation.json": ("report both", "compare"),
    f"{SEED}/metrics.jsonl": ("report both", "compare"),
    f"{SEED}/samples/latest.safetensors": ("report both",),
    DUMP: ("replay",),
    f"{DUMP}/state.json": ("replay",),
    f"{DUMP}/inputs.safetensors": ("replay",),
    "diverged/config.yaml": ("replay",),
    "cache": ("start", "evaluate", "replay"),
    "cache/teacher-*": ("start", "evaluate", "replay"),
    "cache/teacher-*/teacher.safetensors": ("start", "evaluate", "replay"),
    "cache/teacher-*/checksums.json": ("start", "evaluate", "replay"),
    "cache/teacher-*.lock": ("start", "evaluate", "replay"),
}


def remove(path):
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


def elsewhere(path, outside):
    if path.exists():
        shutil.move(path, outside / path.name)
        path.symlink_to(outside / path.name)


def other_kind(path, outside):
    folder = path.is_dir()
    remove(path)
    if folder:
        path.write_text("mine")
    else:
        path.mkdir()
        (path / "mine").write_text("mine")


def forbidden(path, outside):
    if path.exists():
        path.chmod(0)


KINDS = {
    "a link to it elsewhere": elsewhere,
    "a link to nowhere": lambda path, outside: (remove(path), path.symlink_to(outside / "nowhere")),
    "a link to itself": lambda path, outside: (remove(path), path.symlink_to(path)),
    "a pipe": lambda path, outside: (remove(path), os.mkfifo(path)),
    "a device": lambda path, outside: (remove(path), path.symlink_to("/dev/zero")),
    "a folder for a file, or a file for a folder": other_kind,
    "forbidden": forbidden,
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with a run, its comparison, a run that diverged, and the cache of all."""
    folder, plugins = tmp_path_factory.mktemp("whole"), get_plugin_manager()
    recipe = recipes.load("modes2d", plugins, SETTINGS)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("AMD_PLUGIN_CACHE", str(folder / "cache"))
        run.train(recipe, plugins, folder / "run")
        evaluate(folder / "run", plugins, samples=40)
        arms = [Arm("dmd", "dmd"), Arm("amd", "amd")]
        compare("modes2d", arms, [0], TINY, folder / "comparison", plugins, workers=1)
        with pytest.raises(RunError, match="finite"):
            run.train(recipes.load("modes2d", plugins, (*TINY, "train.student_lr=1e30")), plugins, folder / "diverged")
    return folder


@pytest.fixture
def stuck():
    """Ends a command that waits for ever."""

    def end(signum, frame):
        raise AssertionError(f"not at its end after {LONGEST} s")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(LONGEST)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("process", ctypes.c_int))


@contextmanager
def as_anybody():
    """Without root's right to read and write what is forbidden."""
    libc, header, sets = ctypes.CDLL(None), _Header(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(ctypes.byref(header), sets) == 0
    effective = sets[0]
    sets[0] = effective & ~0b110  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
    assert libc.capset(ctypes.byref(header), sets) == 0
    try:
        yield
    finally:
        sets[0] = effective
        assert libc.capset(ctypes.byref(header), sets) == 0


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# A third of all pairs, each with one of its commands in turn: all of them with all would take ten minutes.
TRIES = [
    (name, kind, commands[(row + column) // 3 % len(commands)])
    for row, (name, commands) in enumerate(READERS.items())
    for column, kind in enumerate(KINDS)
    if (row + column) % 3 == 0
]


@pytest.mark.parametrize(("name", "kind", "command"), TRIES)
def test_a_command_ends_in_words_or_well(name, kind, command, whole, tmp_path, cli, stuck, monkeypatch, forked_workers):
    folder, outside = shutil.copytree(whole, tmp_path / "whole"), tmp_path / "outside"
    outside.mkdir()
    monkeypatch.setenv("AMD_PLUGIN_CACHE", str(folder / "cache"))
    paths = sorted(folder.glob(name)) if "*" in name else [folder / name]
    assert paths
    for path in paths:
        KINDS[kind](path, outside)
    before = content(outside)
    with as_anybody():
        code, printed = cli(*COMMANDS[command](folder))
    assert code in (0, 1, 2) and "Traceback" not in printed, printed
    assert code == 0 or "error: " in printed or "PROBLEM" in printed, printed
    assert before.keys() <= content(outside).keys(), printed
    checkpoints = folder / "run" / "checkpoints"
    for checkpoint in (checkpoints / "step-000002", folder / NEWEST):
        assert {checkpoints, checkpoint} & {*paths} or checkpoint.is_dir(), printed


@pytest.mark.parametrize(
    ("name", "command"),
    [("run/samples", "resume"), ("run/checkpoints", "resume"), ("run/student", "resume"), ("run/evaluation", "evaluate"),
     ("run/evaluation/samples", "evaluate"), ("run/evaluation/latents", "evaluate"), (SEED, "report both"),
     ("comparison/arms", "compare")],
)  # fmt: skip
def test_nothing_is_written_where_a_link_leads(name, command, whole, tmp_path, cli, monkeypatch, forked_workers):
    folder, outside = shutil.copytree(whole, tmp_path / "whole"), tmp_path / "outside"
    outside.mkdir()
    monkeypatch.setenv("AMD_PLUGIN_CACHE", str(folder / "cache"))
    (folder / name).mkdir(exist_ok=True)  # points have no pictures
    elsewhere(folder / name, outside)
    before = content(outside)
    code, printed = cli(*COMMANDS[command](folder))
    assert code == 2 and ("by a link" in printed or "is a link" in printed), printed
    assert content(outside) == before
