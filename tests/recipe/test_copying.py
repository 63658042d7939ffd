"""Copies of recipes, to files and to folders, as they are typed."""

import pytest


@pytest.mark.parametrize(("to", "file"), [("new/folder", "new/folder/digits.yaml"), ("deep/mine.yml", "deep/mine.yml")])
def test_a_folder_is_made_and_a_file_ends_in_yaml(cli, tmp_path, to, file):
    code, printed = cli("recipes", "copy", "digits", tmp_path / to)
    assert code == 0 and (tmp_path / file).is_file(), printed
    assert cli("recipes", "validate", tmp_path / file)[0] == 0
    code, printed = cli("recipes", "copy", "digits", tmp_path / to)
    assert code == 2 and "exists already" in printed


def test_a_file_where_the_folder_would_be_is_left_alone(cli, tmp_path):
    (tmp_path / "taken").write_text("mine")
    code, printed = cli("recipes", "copy", "digits", tmp_path / "taken")
    assert code == 2 and "Traceback" not in printed and (tmp_path / "taken").read_text() == "mine"
