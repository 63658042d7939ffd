"""Copies of recipes, to files and to folders, as they are typed."""

import re

import pytest

from amd_plugin.recipe import shipped


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


def test_a_recipe_that_is_no_text_is_refused_in_words(cli, tmp_path):
    (tmp_path / "mine.yaml").write_bytes(b"# caf\xe9\ndata: {task: modes2d}\n")
    code, printed = cli("recipes", "copy", tmp_path / "mine.yaml", tmp_path / "new" / "copy.yaml")
    assert code == 2 and "mine.yaml: cannot be read: 'utf-8' codec" in printed and not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", sorted(shipped()))
def test_the_commands_of_a_copy_name_the_copy(cli, tmp_path, name):
    assert cli("recipes", "copy", name, tmp_path / "my own.yaml")[0] == 0
    texts = [path.read_text() for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".json"]
    named = [
        words for text in texts for words in re.findall(r"(?:amd-plugin|amd_plugin\.cli) (?:train|compare|plan) (.*)", text)
    ]
    assert named and all(words.startswith(("'my own.yaml'", '"${RECIPE', '"$RECIPE')) for words in named), named
    assert f"{name}.yaml" not in "".join(texts)
