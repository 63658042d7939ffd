"""Whole commands on a run's folder in which something is of another kind: a link, a pipe, a folder for a file, or not to be read.

Each ends by itself, with an error for people or correctly, and nothing is lost: neither a checkpoint nor what a link leads to.
"""

import ctypes
import os
import shutil
import signal
from contextlib import contextmanager

import pytest

from amd_plugin import get_plugin_manager
from amd_plugin import recipe as recipes
from amd_plugin.evaluate.students.evaluation import evaluate
from amd_plugin.host import run
from tests.helpers.recipes import TINY

LONGEST = 120  # seconds of a command; those that wait for a pipe would wait for ever
NEWEST = "checkpoints/step-000004"
COMMANDS = {
    "resume": lambda run: ("train", "--resume", run, "--set=train.max_steps=5"),
    "check": lambda run: ("train", "--resume", run, "--set=train.max_steps=5", "--dry-run"),
    "export": lambda run: ("export", run),
    "evaluate": lambda run: ("evaluate", run, "--samples=40"),
    "report": lambda run: ("report", run),
    "doctor": lambda run: ("doctor", run),
}
# What lies in a folder -> the commands that read or write it.
READERS = {
    "config.yaml": ("check", "report", "doctor"),
    "run.json": ("check", "report", "doctor"),
    "metrics.jsonl": ("resume", "export", "report", "doctor"),
    "evaluation.json": ("resume", "report", "doctor"),
    "report.html": ("report",),
    ".lock": ("resume",),
    ".holder.json": ("resume",),
    "samples": ("resume", "export", "report"),
    "samples/step-000004.png": ("export", "report"),
    "samples/latest.safetensors": ("resume", "report"),
    "student": ("resume", "export"),
    "student/README.md": ("export",),
    "checkpoints": ("check", "export", "report", "doctor"),
    NEWEST: ("resume", "export", "doctor"),
    f"{NEWEST}/manifest.json": ("check", "export", "doctor"),
    f"{NEWEST}/state.json": ("check", "export", "doctor"),
    f"{NEWEST}/student.safetensors": ("check", "export", "doctor"),
    "evaluation": ("evaluate", "report"),
    "evaluation/drawn.json": ("evaluate",),
    "evaluation/pairs.json": ("report",),
    "evaluation/latents": ("evaluate",),
    "evaluation/latents/student/00000.safetensors": ("evaluate",),
    "evaluation/evaluation.md": ("evaluate",),
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
    folder, plugins = tmp_path_factory.mktemp("whole") / "run", get_plugin_manager()
    settings = (*TINY, "train.evaluate_every=2", "train.checkpoint_every=2", "train.keep_checkpoints=3")
    run.train(recipes.load("modes2d", plugins, settings), plugins, folder)
    evaluate(folder, plugins, samples=40)
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
def test_a_command_ends_in_words_or_well(name, kind, command, whole, tmp_path, cli, stuck):
    folder, outside = shutil.copytree(whole, tmp_path / "run"), tmp_path / "outside"
    outside.mkdir()
    path = folder / name
    KINDS[kind](path, outside)
    before = content(outside)
    with as_anybody():
        code, printed = cli(*COMMANDS[command](folder))
    assert code in (0, 1, 2) and "Traceback" not in printed, printed
    assert code == 0 or "error: " in printed or "PROBLEM" in printed, printed
    assert before.keys() <= content(outside).keys(), printed
    for checkpoint in (folder / "checkpoints" / "step-000002", folder / NEWEST):
        assert path in (checkpoint.parent, checkpoint) or checkpoint.is_dir(), printed
