"""Prompts that cannot be used, through the command line: exit code 2, the recipe's line, and nothing trained or written."""

import pytest
import yaml

from amd_plugin.host.training.trainer import Trainer
from amd_plugin.recipe.files import find


@pytest.fixture
def recipe(tmp_path, pipeline_folder):
    """``recipe(source=...)`` writes the shipped recipe for a tiny pipeline, with a data section of its own."""

    def write(**section):
        shipped = yaml.safe_load(find("sdxl_4step").read_text())
        rest = shipped | {"model": {"path": str(pipeline_folder("sdxl"))}, "objective": {"name": "dmd"}, "rewards": []}
        rest["data"] = {"task": "prompts", **section}
        path = tmp_path / "recipe.yaml"
        path.write_text("# a user's\n" + yaml.safe_dump({"data": rest.pop("data")}, sort_keys=False) + yaml.safe_dump(rest))
        return path

    return write


COMMANDS = {"train": ("train",), "validate": ("recipes", "validate")}
BAD = {
    "empty.txt": (b"", {}, "is empty"),
    "blank.txt": (b"\n\n", {}, "only blank lines"),
    "nul.txt": (b"a fox\n\0\n", {}, "line 2 has a NUL"),
    "latin.txt": (b"caf\xe9\n", {}, "UTF-8"),
    "column.jsonl": (b'{"prompt": "a fox"}', {"column": "promt"}, "Did you mean 'prompt'"),
    "numbers.csv": (b"prompt\n1\n", {}, "must be text"),
    "streamed.csv": (b"caption s\na\n", {"streaming": True}, "must have a column"),
    "picture.jsonl": (b'{"prompt": "a fox"}', {"image_column": "image"}, "must have a column 'image'"),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", BAD)
def test_bad_prompts_end_before_anything_is_made(command, name, recipe, cli, tmp_path, monkeypatch):
    content, options, said = BAD[name]
    (tmp_path / name).write_bytes(content)
    _stops(command, recipe(source=name, **options), said, cli, tmp_path, monkeypatch)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_that_is_not_there_is_answered_with_the_nearest(command, recipe, cli, tmp_path, monkeypatch):
    (tmp_path / "prompts.txt").write_text("a fox")
    _stops(command, recipe(source="promts.txt"), "Did you mean 'prompts.txt'", cli, tmp_path, monkeypatch)


def test_a_data_set_on_the_hub_without_a_network(recipe, cli, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    _stops("train", recipe(source="nobody/has-this"), "nor could it be read from the hub", cli, tmp_path, monkeypatch)


def test_held_out_prompts_are_looked_at_too(recipe, cli, tmp_path, monkeypatch):
    (tmp_path / "prompts.txt").write_text("a fox")
    (tmp_path / "held_out.txt").write_text("")
    _stops(
        "train",
        recipe(source="prompts.txt", held_out="held_out.txt"),
        f"data.held_out: {tmp_path / 'held_out.txt'}: is empty",
        cli,
        tmp_path,
        monkeypatch,
    )


def _stops(command, path, said, cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Trainer, "__init__", lambda *_: pytest.fail("a trainer was made"))
    before = sorted(tmp_path.rglob("*"))
    code, printed = cli(*COMMANDS[command], path, *(("--output", "run") if command == "train" else ()))
    assert code == 2, printed
    flat = " ".join(printed.split())
    assert said in flat and "recipe.yaml:" in flat and "Traceback" not in printed
    assert sorted(tmp_path.rglob("*")) == before
