"""Ctrl-C and SIGTERM in commands that do not train: one line, exit code 130 or 143, nothing half written."""

import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from amd_plugin import interrupts
from amd_plugin.cache import CHECKSUMS
from amd_plugin.errors import RunError
from amd_plugin.host import run
from amd_plugin.host.running.preemption import Preemption
from amd_plugin.models.embedded import teacher
from tests.helpers.recipes import TINY


@pytest.fixture
def signals(monkeypatch):
    """No signal has come so far, and the handlers of this process are its own again after the test."""
    before = {signum: signal.getsignal(signum) for signum in interrupts.SIGNALS}
    monkeypatch.setattr(interrupts, "received", interrupts.Received())
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished run."""
    from amd_plugin import get_plugin_manager, recipe

    folder, plugins = tmp_path_factory.mktemp("finished") / "run", get_plugin_manager()
    run.train(recipe.load("modes2d", plugins, TINY), plugins, folder)
    return folder


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Command -> a function that it calls in its middle, as module and name.
MIDDLE = {
    "evaluate": ("amd_plugin.evaluate.students.evaluation", "measure"),
    "export": ("amd_plugin.host.student.export", "write_card"),
    "report": ("amd_plugin.evaluate.report.report", "write_text"),
}


def interrupted(monkeypatch, module, name, signum):
    import importlib

    def signalled(*arguments, **options):
        os.kill(os.getpid(), signum)
        raise AssertionError("it went on")

    monkeypatch.setattr(importlib.import_module(module), name, signalled)


@pytest.mark.parametrize(
    ("signum", "code", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated"), (signal.SIGHUP, 129, "the terminal was closed")],
)
@pytest.mark.parametrize("command", ["evaluate", "export", "report"])
def test_a_command_ends_in_one_line(command, signum, code, word, finished, signals, monkeypatch, cli):
    before = files(finished)
    interrupted(monkeypatch, *MIDDLE[command], signum)
    ended, printed = cli(command, finished)
    assert ended == code and printed.splitlines()[-1] == word and "Traceback" not in printed
    after = files(finished)
    assert {name: after[name] for name in before} == before, "what was there has changed"
    new = {path for path in after if path not in before}
    assert all(path.parts[0] == "evaluation" for path in new) and not any(".tmp" in str(path) for path in new)


def test_a_signal_does_not_hide_the_failure_before_it(signals, tmp_path, monkeypatch, cli):
    """Launchers end the other processes of a run as soon as one has died, so while these say which one it was."""

    def failing(*arguments, **options):
        try:
            raise RunError("no answer from process 1")
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)

    monkeypatch.setattr(run, "_run", failing)
    settings = [f"--set={setting}" for setting in TINY]
    ended, printed = cli("train", "modes2d", *settings, "--output", tmp_path / "run")
    assert ended == RunError.exit_code and "error: no answer from process 1" in printed and "terminated" not in printed


def test_the_exit_code_survives_a_terminal_that_is_gone(signals, tmp_path, monkeypatch, cli):
    from amd_plugin import cli as module

    reader, terminal = os.openpty()
    os.close(reader)
    for console in (module.out, module.err):
        monkeypatch.setattr(console, "quiet", False)
        monkeypatch.setattr(console, "_file", os.fdopen(os.dup(terminal), "w"))
    settings = [f"--set={setting}" for setting in TINY]
    monkeypatch.setattr(run, "save", lambda *arguments: os.kill(os.getpid(), signal.SIGHUP))
    code, printed = cli("train", "modes2d", *settings, "--output", tmp_path / "run")
    assert code == 129 and "Traceback" not in printed, printed


def test_a_signal_in_the_first_moments_ends_in_one_line(signals, monkeypatch, cli):
    from amd_plugin import cli as module

    interrupted(monkeypatch, module.__name__, "take_any_text", signal.SIGTERM)
    code, printed = cli("--version")
    assert code == 143 and printed.splitlines()[-1] == "terminated" and "Traceback" not in printed


def test_a_signal_that_is_repeated_after_a_fast_checkpoint_is_no_second_one(signals):
    interrupts.answer()
    with Preemption() as preemption:
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(interrupts.Interrupted):
            preemption.stop_point()
    os.kill(os.getpid(), signal.SIGTERM)  # while a run closes its log
    interrupts.received._at -= interrupts.FIRST
    with pytest.raises(interrupts.Interrupted):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)


def test_nohup_is_obeyed(signals):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    interrupts.answer()
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN and signal.getsignal(signal.SIGTERM) is interrupts.leave


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_planning_ends_in_one_line(signum, code, signals, monkeypatch, cli):
    import amd_plugin.plan as planning

    interrupted(monkeypatch, planning.__name__, "plan_with_changes", signum)
    ended, printed = cli("plan", "modes2d", "--gpus", "1")
    assert ended == code and "Traceback" not in printed and printed.splitlines()[-1] in ("interrupted", "terminated")


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_question_that_is_answered_by_a_signal(signum, code, signals, monkeypatch, cli):
    """click takes it for a refusal, with exit code 1."""
    from amd_plugin import cli as module
    from amd_plugin.evaluate.comparison import compare

    monkeypatch.setattr(compare, "compare", lambda *_, agree, **__: agree("Start?"))
    monkeypatch.setattr(module.out, "_force_terminal", True)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True, readline=lambda: os.kill(os.getpid(), signum)))
    ended, printed = cli("compare", "modes2d")
    assert ended == code and printed.splitlines()[-1].endswith(("interrupted", "terminated")) and "Abort" not in printed


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_teacher_that_is_being_trained_leaves_no_part_of_it(signum, code, signals, tmp_path, monkeypatch, cli):
    """The rewards are built before the teacher, so their classifier is there, and complete."""
    monkeypatch.setenv("AMD_PLUGIN_CACHE", str(tmp_path / "cache"))
    interrupted(monkeypatch, teacher.__name__, "train_teacher", signum)
    settings = [f"--set={setting}" for setting in TINY]
    ended, printed = cli("train", "modes2d", *settings, "--set=model.width=24", "--output", tmp_path / "run")
    assert ended == code and "Traceback" not in printed
    assert not (tmp_path / "run").exists()
    made = [path for path in (tmp_path / "cache").iterdir() if path.suffix != ".lock"]
    assert [path.name.partition("-")[0] for path in made] == ["classifier"]
    assert (made[0] / CHECKSUMS).is_file()


WHILE_IT_IS_IMPORTED = """
class Sent:
    def find_spec(self, name, *rest):
        name == "typer" and os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Sent())
"""
AT_ITS_END = "atexit.register(os.kill, os.getpid(), signal.SIGINT)"


@pytest.mark.parametrize(("when", "code", "said"), [(WHILE_IT_IS_IMPORTED, 130, "interrupted\n"), (AT_ITS_END, 0, "")])
def test_neither_the_imports_nor_the_end_of_python_is_a_traceback(when, code, said):
    program = f"import atexit, os, signal, sys\n{when}\nfrom amd_plugin.__main__ import main\nmain()"
    done = subprocess.run([sys.executable, "-c", program, "--version"], capture_output=True, text=True, timeout=200)
    assert (done.returncode, done.stderr) == (code, said)
