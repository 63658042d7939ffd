"""What a run depends on beside its recipe's values is noticed where it has changed under the same name."""

import itertools
import os

import pytest

from amd_plugin import get_plugin_manager, plugin_files, recipe
from amd_plugin.errors import InputError, RunError
from amd_plugin.host import run
from amd_plugin.host.running.recipe_changes import check_recipe, finished
from amd_plugin.host.running.run_description import about
from amd_plugin.recipe import inputs
from tests.helpers.recipes import TINY

REWARD = """
import amd_plugin

class Near:
    {version}

    def __init__(self, table: str = ""):
        pass

    def __call__(self, media, prompts):
        return -media.pow(2).sum(1) * {factor}

@amd_plugin.hookimpl
def distill_rewards():
    return {{"near": Near}}
"""
SAMPLER = """
import amd_plugin

@amd_plugin.hookimpl
def distill_strength_schedule():
    return 0.5
"""


@pytest.fixture
def load(tmp_path):
    """``load("a.b=c", version=..., factor=..., sampler=...)``: a recipe with a reward in a file, and one more plugin."""
    clock = itertools.count(10**9)

    def loaded(*overrides, version='version = "1"', factor=1.0, sampler=False):
        plugins = get_plugin_manager()
        texts = {"mine.py": REWARD.format(version=version, factor=factor)} | ({"sampler.py": SAMPLER} if sampler else {})
        for name, text in texts.items():
            (tmp_path / name).write_text(text)
            os.utime(tmp_path / name, (0, next(clock)))  # Python keeps what it compiled in the same second
            plugins.register(plugin_files.read(tmp_path / name), name)
        reward = f"rewards=[{{name: near, table: {tmp_path / 'table.csv'}}}]"
        return recipe.load("modes2d", plugins, (*TINY, reward, *overrides), "amd"), plugins

    (tmp_path / "table.csv").write_text("a,b\n1,2\n")
    return loaded


def test_a_finished_run_is_not_taken_for_one_of_other_inputs(load, tmp_path):
    folder = tmp_path / "run"
    loaded, plugins = load()
    found = run.train(loaded, plugins, folder)
    assert sorted(about(folder).inputs) == ["rewards.0.code", "rewards.0.table", "rewards.0.version"]
    assert finished(folder, load()[0]) == found

    def refused(said, *, goes_on=False, **changes):
        changed = load(**changes)[0]
        with pytest.raises(InputError, match=rf"(?s)other settings.*{said}"):
            finished(folder, changed)
        if goes_on:
            return check_recipe(folder, changed)
        with pytest.raises(InputError, match=rf"(?s)another recipe.*{said}"):
            check_recipe(folder, changed)

    refused("rewards.0.version: 1 -> 2", version='version = "2"')
    refused("rewards.0.version: 1 -> none", version="pass")
    refused("plugin sampler.py: none -> moves noise levels", sampler=True)
    refused(r"rewards.0.code: mine.py, checksum \w+ -> mine.py", factor=2.0, goes_on=True)
    (tmp_path / "table.csv").write_text("a,b\n1,3\n")
    refused("rewards.0.table: 8 bytes, checksum .* -> 8 bytes")
    described = (folder / "run.json").read_text()
    (folder / "run.json").write_text(described.replace('"inputs"', '"of an earlier version"'))
    assert finished(folder, load()[0]) == found, "what was not saved is not compared"


def test_a_checkpoint_is_taken_up_with_the_same_inputs_or_mended_code(load, tmp_path, caplog):
    loaded, plugins = load()
    run.train(loaded, plugins, tmp_path / "run")
    saved = str(tmp_path / "run" / "checkpoints" / "step-000004")
    longer = "train.max_steps=5"
    with pytest.raises(InputError, match=r"(?s)is of another recipe.*rewards.0.version: 1 -> 2"):
        run.train(*load(longer, version='version = "2"'), tmp_path / "another", resume=saved)
    caplog.clear()
    with pytest.raises(RunError, match="near"):  # and after it was mended it goes on
        run.train(*load(longer, factor="media"), tmp_path / "run", resume="auto")
    run.train(*load(longer, factor=2.0), tmp_path / "run", resume="auto")
    assert "rewards.0.code has changed since the checkpoint: mine.py" in caplog.text


def test_files_are_read_as_far_as_it_is_cheap(tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "FIRST", 1)
    monkeypatch.setattr("amd_plugin.checksums.PART", 4)
    path = tmp_path / "file"

    def said(text, name="data.source", place=path):
        path.write_text(text)
        inputs._beginning.cache_clear()
        return inputs._file(name, str(place))

    assert said("abcdef").startswith("6 bytes, checksum ")
    assert said("abcdeX") == said("abcdef") != said("Xbcdef") and said("abcdef") != said("abcdefg")
    assert said("a", place=tmp_path).startswith("1 files, checksum ") and said("a", place=tmp_path) != said(
        "ab", place=tmp_path
    )
    assert not said("a", "model.path", tmp_path) and not inputs._file("data.source", "owner/name")
