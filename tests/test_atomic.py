"""Files and folders are complete, or as they were before."""

import pytest

from amd_plugin.atomic import replaced_file, replaced_folder


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
    (tmp_path / ".folder.tmp").mkdir()
    (tmp_path / ".folder.tmp" / "half of it").touch()
    with replaced_folder(path) as draft:
        (draft / "all of it").touch()
    assert [entry.name for entry in path.iterdir()] == ["all of it"]
