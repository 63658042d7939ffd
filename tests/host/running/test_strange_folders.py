"""Run folders that somebody else made, damaged or moved: told in words, without waiting for a pipe and without growing."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from amd_plugin import get_plugin_manager
from amd_plugin import recipe as recipes
from amd_plugin.errors import InputError, RunError
from amd_plugin.host import checkpoint, run
from amd_plugin.host.evaluation.evaluate import HeldOutEvaluation
from amd_plugin.host.student.export import export_run
from tests.helpers.recipes import TINY
from tests.host.running.test_exactly_once import EVERY, same, straight  # noqa: F401 (a fixture)

PLUGINS = get_plugin_manager()
STOPPED = (*TINY, "train.checkpoint_every=2")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    run.train(recipes.load("modes2d", PLUGINS, STOPPED), PLUGINS, folder)
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    """A copy of a run, with its newest checkpoint alone."""
    copy = shutil.copytree(whole, tmp_path / "run")
    (copy / "evaluation.json").unlink()
    for older in sorted((copy / "checkpoints").iterdir())[:-1]:
        shutil.rmtree(older)
    return copy


def resumed(folder):
    run.train(recipes.load("modes2d", PLUGINS, STOPPED), PLUGINS, folder, resume="auto")


def saved(folder):
    return next((folder / "checkpoints").iterdir())


@pytest.mark.parametrize("role", ["student", "ema"])
@pytest.mark.parametrize("repeats", [True, False])  # whether a copy would stretch it until it fits
def test_weights_of_another_shape(role, repeats, folder):
    file = saved(folder) / f"{role}.safetensors"
    tensors = load_file(file)
    name = next(name for name, value in tensors.items() if value.dim() == 2)
    tensors[name] = tensors[name][:1].clone() if repeats else torch.zeros(*tensors[name].shape, 2)
    save_file(tensors, file)
    checkpoint.write_manifest(saved(folder))  # as from somebody who knows the format
    for action in (lambda: export_run(folder, PLUGINS), lambda: resumed(folder)):
        with pytest.raises(InputError, match=r"does not fit (.|\n)*Use an earlier one"):
            action()


@pytest.mark.parametrize("name", ["metrics.jsonl", "run.json", "config.yaml"])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_pipe_or_a_device_is_not_waited_for(name, kind, folder, caplog):
    (folder / name).unlink()
    os.mkfifo(folder / name) if kind == "pipe" else (folder / name).symlink_to("/dev/zero")
    if kind == "device":
        with pytest.raises(InputError, match=rf"{name}: leads out of .* by a link"):
            resumed(folder)
    elif name == "metrics.jsonl":
        with pytest.raises(InputError, match=r"metrics.jsonl: cannot be read: it is no file but a pipe or a device"):
            resumed(folder)
    else:
        resumed(folder)
        assert f"{name}: cannot be read" in caplog.text and "it was written anew" in caplog.text


@pytest.mark.parametrize("name", ["state.json", "student.safetensors"])
def test_a_pipe_in_a_checkpoint_is_not_waited_for(name, folder):
    (saved(folder) / name).unlink()
    os.mkfifo(saved(folder) / name)
    manifest = json.loads((saved(folder) / "manifest.json").read_text())
    manifest["files"][name] = 0
    (saved(folder) / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="none of the checkpoints"):
        resumed(folder)


def test_a_description_that_would_grow_without_end(folder, caplog):
    layers = "".join(f"  x{i}: &x{i} [{', '.join([f'*x{i - 1}'] * 9)}]\n" for i in range(1, 12))
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("model:\n", f"model:\n  x0: &x0 [y]\n{layers}", 1))
    resumed(folder)
    assert "aliases are not allowed" in caplog.text and "it was written anew" in caplog.text


@pytest.mark.parametrize("content", [b"[]", b"\xff\xfe", b'{"wandb": 3}', b"{"])
def test_ids_of_trackers_that_are_damaged(content, folder, caplog):
    (folder / "trackers.json").write_bytes(content)
    more = (*STOPPED, "train.trackers=[tensorboard]", "train.max_steps=5")
    run.train(recipes.load("modes2d", PLUGINS, more), PLUGINS, folder, resume="auto")
    assert "trackers.json" in caplog.text and "begins a new one" in caplog.text


def test_a_folder_that_is_moved_while_its_run_goes_on(straight, tiny, plugins, tmp_path, monkeypatch):  # noqa: F811
    folder, aside, original = tmp_path / "run", tmp_path / "aside", HeldOutEvaluation.__call__

    def call(self, *arguments):
        result = original(self, *arguments)
        folder.rename(aside)
        return result

    with monkeypatch.context() as patch:
        patch.setattr(HeldOutEvaluation, "__call__", call)
        with pytest.raises(RunError, match=r"metrics.jsonl: cannot be written: No such file(.|\n)*Put it back where it was"):
            run.train(tiny(*EVERY), plugins, folder)
    assert not folder.exists()
    aside.rename(folder)
    run.train(tiny(*EVERY), plugins, folder, resume="auto")
    same(straight, folder)
