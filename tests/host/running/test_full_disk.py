"""A disk that does not take a file: one message, nothing lost, and a run that goes on to the bit when there is room."""

import errno
import json
import os
from types import SimpleNamespace

import pytest

from amd_plugin import atomic, disk
from amd_plugin.disk import NotWritten
from amd_plugin.errors import InputError, RunError
from amd_plugin.host import run
from amd_plugin.host.running.line_file import LineFile
from tests.helpers.limits import no_file_above
from tests.helpers.recipes import TINY
from tests.host.running.test_exactly_once import EVERY, same, straight  # noqa: F401 (a fixture)


def refuses(monkeypatch, name, reason):
    """Whatever is written under `name` is refused in the end, as by a disk that is full then."""
    original = os.replace

    def replace(source, target):
        if name in str(target):
            raise OSError(reason, os.strerror(reason), str(source))
        return original(source, target)

    monkeypatch.setattr(atomic.os, "replace", replace)


STOPS = ("step-000002", "step-000004", "step-000006", "student", "evaluation.json")
GOES_ON = ("step-000003.png", "latest.safetensors", "README.md", "curves.png")


@pytest.mark.parametrize("name", STOPS)
def test_what_a_run_cannot_do_without_stops_it_and_it_goes_on_to_the_bit(name, straight, tiny, plugins, tmp_path, monkeypatch):  # noqa: F811
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        refuses(patch, name, errno.ENOSPC)
        with pytest.raises(
            RunError, match=rf"{name}: cannot be written: No space left(.|\n)*Make room, then: .* --resume"
        ) as caught:
            run.train(tiny(*EVERY), plugins, folder)
    assert "draft" not in str(caught.value) and ".tmp" not in str(caught.value)
    assert ("is whole" in str(caught.value)) == (name != "step-000002")
    run.train(tiny(*EVERY), plugins, folder, resume="auto")
    same(straight, folder)


@pytest.mark.parametrize("reason", [errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO])
def test_every_reason_has_its_remedy(reason, tiny, plugins, tmp_path, monkeypatch):
    refuses(monkeypatch, "step-000004", reason)
    with pytest.raises(RunError) as caught:
        run.train(tiny(), plugins, tmp_path / "run")
    assert os.strerror(reason) in str(caught.value) and f"{disk.REMEDIES[reason]}, then:" in str(caught.value)


@pytest.mark.parametrize("name", GOES_ON)
def test_what_can_be_made_again_is_done_without(name, straight, tiny, plugins, tmp_path, monkeypatch, caplog):  # noqa: F811
    refuses(monkeypatch, name, errno.ENOSPC)
    run.train(tiny(*EVERY), plugins, tmp_path / "run")
    assert "cannot be written: No space left on device; " in caplog.text and ".tmp" not in caplog.text
    same(straight, tmp_path / "run")


def no_room(file):
    """`file` on a disk that has room for 50 bytes more.

    A limit of the operating system holds for the whole process: another thread, and pytest that keeps what is printed, meet it too.
    """
    left = [50]

    def write(content):
        if not left[0]:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        taken = file.write(content[: left[0]])
        left[0] -= taken
        return taken

    return SimpleNamespace(write=write, fileno=file.fileno, truncate=file.truncate)


def test_lines_wait_for_room(straight, tiny, plugins, tmp_path, monkeypatch, caplog):  # noqa: F811
    original = LineFile.add

    def add(file, line):
        with monkeypatch.context() as patch:
            patch.setattr(file, "_file", no_room(file._file))
            original(file, line)

    monkeypatch.setattr(LineFile, "add", add)
    run.train(tiny(*EVERY), plugins, tmp_path / "run")
    assert caplog.text.count("wait for the next checkpoint") == 1
    same(straight, tmp_path / "run")


def test_a_checkpoint_vouches_for_no_line_that_is_not_there(straight, tiny, plugins, tmp_path, monkeypatch):  # noqa: F811
    original, folder = LineFile._write, tmp_path / "run"

    def write(file):
        with monkeypatch.context() as inner:
            inner.setattr(file, "_file", no_room(file._file))
            original(file)

    with monkeypatch.context() as patch:
        patch.setattr(LineFile, "_write", write)
        with pytest.raises(RunError, match=r"metrics.jsonl: cannot be written: File too large(.|\n)*step-000002 is whole"):
            run.train(tiny(*EVERY), plugins, folder)
    run.train(tiny(*EVERY), plugins, folder, resume="auto")
    same(straight, folder)


def test_a_limit_on_the_size_of_files(tiny, plugins, tmp_path):
    for size, error, file in ((300, InputError, "(run.json|config.yaml|holder.json)"), (7000, RunError, "step-000004")):
        with no_file_above(size), pytest.raises(error, match=rf"{file}: cannot be written: File too large"):
            run.train(tiny(), plugins, tmp_path / f"run-{size}")
    left = [path.name for path in tmp_path.rglob(".*") if path.name != ".lock"]
    assert left == []


def test_lines_of_a_file_are_whole(tmp_path):
    file = LineFile(tmp_path / "lines", 0)
    file.add("one")
    with no_file_above(6):
        file.add("two")
        with pytest.raises(NotWritten, match=r"File too large: '.*lines'"):
            file.settle()
    assert (tmp_path / "lines").read_text() == "one\n" and file.count == 2
    file.add("three")
    assert (tmp_path / "lines").read_text() == "one\ntwo\nthree\n"
    file.close()


def test_commands_name_the_file_and_leave_what_was_there(tiny, plugins, tmp_path, cli, monkeypatch, caplog):
    folder = tmp_path / "run"
    run.train(tiny(), plugins, folder)
    student = (folder / "student" / "README.md").read_text()
    for command, name in ((["export", folder], "student"), (["evaluate", folder], "00000.safetensors")):
        with monkeypatch.context() as patch:
            refuses(patch, name, errno.ENOSPC)
            code, printed = cli(*command)
        said = " ".join(printed.split())
        assert code == 1 and f"{name}: cannot be written: No space left on device" in said and "Traceback" not in said
        assert "Make room, and give the same command again" in said
    assert (folder / "student" / "README.md").read_text() == student
    with monkeypatch.context() as patch:
        refuses(patch, "report.html", errno.ENOSPC)
        code, printed = cli("train", "modes2d", "--resume", folder, "--set", "train.max_steps=5")
    assert code == 0 and "the run is complete; later: amd-plugin report" in caplog.text, printed
    assert json.loads((folder / "evaluation.json").read_text()) and not (folder / "report.html").exists()


@pytest.mark.parametrize("room", [20_000, 60_000])  # bytes: for some of the pictures
def test_a_full_disk_under_tensorboard_is_a_line_and_the_run_goes_on(room, cli, tmp_path, monkeypatch, caplog):
    """Its own thread writes, and would print a traceback of its own."""
    from tensorboard.summary.writer.record_writer import RecordWriter

    original, left = RecordWriter.write, [room]

    def write(self, data):
        left[0] -= len(data)
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(self, data)

    monkeypatch.setattr(RecordWriter, "write", write)
    settings = [f"--set={setting}" for setting in (*TINY, "train.evaluate_every=1", "train.trackers=[tensorboard]")]
    code, printed = cli("train", "modes2d", *settings, "--output", tmp_path / "run")
    assert code == 0 and "Traceback" not in printed, printed
    assert "the output: cannot be written: No space left on device" in caplog.text
    assert (tmp_path / "run" / "evaluation.json").is_file()
