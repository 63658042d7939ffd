"""Files and folders are complete, or as they were before."""

import errno
import os
import re
import shutil
import subprocess

import pytest

from amd_plugin import atomic
from amd_plugin.atomic import HOST, remove_folder, replaced_file, replaced_folder, sweep, write_bytes, write_text
from amd_plugin.disk import NotWritten


def test_a_file_is_replaced_at_the_end_of_the_block(tmp_path):
    path = tmp_path / "folder" / "file.txt"
    for content in ("old", "new"):
        with replaced_file(path) as draft:
            draft.write_text(content)
            assert draft.suffix == ".txt" and (not path.exists() or path.read_text() == "old")
        assert path.read_text() == content
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_is_replaced_at_the_end_of_the_block(tmp_path):
    path = tmp_path / "folder"
    for name in ("old", "new"):
        with replaced_folder(path) as draft:
            assert list(draft.iterdir()) == []
            (draft / name).write_text(name)
        assert [file.name for file in path.iterdir()] == [name]
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_removed_whole_whatever_ends_the_process(tmp_path, monkeypatch):
    folder = tmp_path / "step-000002"
    for name in ("a", "b"):
        write_text(folder / name, name)
    with monkeypatch.context() as patch:
        patch.setattr(atomic.shutil, "rmtree", lambda path, **options: next(path.iterdir()).unlink() if path.exists() else None)
        remove_folder(folder)  # one file of it, as where it is killed then
    (left,) = tmp_path.iterdir()
    assert atomic.is_draft(left)
    monkeypatch.setattr(atomic, "_lives", lambda process: False)
    sweep(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_exception_leaves_the_old_content_and_no_draft(tmp_path):
    file, folder = tmp_path / "file", tmp_path / "folder"
    file.write_text("old")
    folder.mkdir()
    (folder / "old").touch()
    with pytest.raises(RuntimeError), replaced_file(file) as draft:
        draft.write_text("half of it")
        raise RuntimeError
    with pytest.raises(RuntimeError), replaced_folder(folder) as draft:
        (draft / "half of it").touch()
        raise RuntimeError
    assert file.read_text() == "old" and [entry.name for entry in folder.iterdir()] == ["old"]
    assert sorted(tmp_path.iterdir()) == [file, folder]


def test_what_an_interrupted_process_left_does_not_get_into_the_folder(tmp_path):
    path = tmp_path / "folder"
    dead = subprocess.Popen(["true"])
    dead.wait()
    left = tmp_path / f".folder.{HOST}-{dead.pid}.tmp"
    left.mkdir()
    (left / "half of it").touch()
    with replaced_folder(path) as draft:
        (draft / "all of it").touch()
    assert [entry.name for entry in path.iterdir()] == ["all of it"] and list(tmp_path.iterdir()) == [path]


def test_a_folder_that_was_put_aside_gets_its_name_back_and_drafts_of_the_living_stay(tmp_path):
    dead = subprocess.Popen(["true"])
    dead.wait()
    (tmp_path / f".folder.{HOST}-{dead.pid}.old").mkdir()
    mine = tmp_path / f".file.{HOST}-{os.getpid()}.tmp.json"
    mine.touch()
    sweep(tmp_path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [mine.name, "folder"]


def test_where_nobody_else_writes_the_drafts_of_other_machines_go_too(tmp_path):
    (tmp_path / ".folder.elsewhere_0123-1.old").mkdir()
    (tmp_path / ".folder.elsewhere_0123-1.tmp").mkdir()
    (tmp_path / ".file.elsewhere_0123-1.tmp.json").touch()
    (tmp_path / ".lock").touch()
    sweep(tmp_path)
    assert len([*tmp_path.iterdir()]) == 4
    sweep(tmp_path, alone=True)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [".lock", "folder"]


@pytest.mark.parametrize("durable", [True, False])
def test_what_is_renamed_is_on_the_disk_before(tmp_path, monkeypatch, durable):
    calls, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (calls.append("fsync"), fsync(descriptor)))
    monkeypatch.setattr(os, "replace", lambda old, new: (calls.append("rename"), replace(old, new)))
    with replaced_file(tmp_path / "file", durable=durable) as draft:
        draft.write_text("all of it")
    assert calls == (["fsync", "rename", "fsync"] if durable else ["rename"])


def test_all_files_of_a_folder_are_on_the_disk_before(tmp_path, monkeypatch):
    calls, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (calls.append("fsync"), fsync(descriptor)))
    monkeypatch.setattr(os, "replace", lambda old, new: (calls.append("rename"), replace(old, new)))
    with replaced_folder(tmp_path / "folder") as draft:
        (draft / "inner").mkdir()
        (draft / "inner" / "file").touch()
        (draft / "link").symlink_to("nowhere")
    assert calls == ["fsync"] * 3 + ["rename", "fsync"]


def test_a_folder_takes_the_place_of_a_link_and_not_of_what_it_leads_to(tmp_path):
    (tmp_path / "other").mkdir()
    for target in ("other", "nowhere"):
        (tmp_path / "folder").symlink_to(target)
        with replaced_folder(tmp_path / "folder") as draft:
            (draft / "file").touch()
        assert not (tmp_path / "folder").is_symlink() and (tmp_path / "folder" / "file").exists()
        shutil.rmtree(tmp_path / "folder")
    assert {path.name for path in tmp_path.iterdir()} == {"other"} and not any((tmp_path / "other").iterdir())


def test_text_and_bytes(tmp_path):
    write_text(tmp_path / "text", "words")
    write_bytes(tmp_path / "bytes", b"\x00")
    assert (tmp_path / "text").read_text() == "words" and (tmp_path / "bytes").read_bytes() == b"\x00"


def test_a_disk_that_takes_nothing_names_the_file_and_what_cannot_be_read_is_no_failure_of_writing(tmp_path, monkeypatch):
    with (
        pytest.raises(NotWritten, match=r"No space left on device: '.*/file.txt'") as caught,
        replaced_file(tmp_path / "file.txt"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.filename == str(tmp_path / "file.txt")
    with pytest.raises(NotWritten, match=r"File too large: '.*/folder'"), replaced_folder(tmp_path / "folder") as draft:
        raise Exception("Error while serializing: I/O error: File too large (os error 27)")
    with pytest.raises(FileNotFoundError), replaced_folder(tmp_path / "folder") as draft:
        (tmp_path / "other").read_text()
    with pytest.raises(NotWritten), replaced_folder(tmp_path / "folder") as draft:
        (draft / "below" / "file").touch()
    assert list(tmp_path.iterdir()) == []


def test_containers_that_share_a_disk_have_names_of_their_own(monkeypatch):
    """Names of pods differ at their end, and those of containers on one machine may be equal; processes count from 1 in each."""
    monkeypatch.setattr(atomic.socket, "gethostname", lambda: "distil-sdxl-with-a-very-long-name-worker-0")
    first = atomic.host_name()
    monkeypatch.setattr(atomic.socket, "gethostname", lambda: "distil-sdxl-with-a-very-long-name-worker-1")
    assert atomic.host_name() != first and len(first) <= 33 and re.fullmatch(r"\w+", first)
    second, namespace = atomic.host_name(), os.stat("/proc/self/ns/pid")
    monkeypatch.setattr(atomic.os, "stat", lambda path: type("Other", (), {"st_ino": namespace.st_ino + 1}))
    assert atomic.host_name() != second
