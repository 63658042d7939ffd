"""A whole run with a sharded teacher, started by every launcher, is the run without: two processes, real DeepSpeed."""

import json

import pytest
import torch
from safetensors.torch import load_file

from amd_plugin import get_plugin_manager, recipe
from amd_plugin.errors import InputError
from tests.helpers.launchers import ALONE, LAUNCHERS, assert_same, trained
from tests.helpers.tiny_wan import train_here


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_sharded_teacher_changes_nothing(launcher, wan, alone, tmp_path):
    printed = trained(LAUNCHERS[launcher], [*wan, "--set=distributed.teacher=zero3", "--output", "run"], tmp_path)
    assert printed.count("report:") == 1
    assert_same(alone, tmp_path / "run")
    one, two = (json.loads((folder / "evaluation.json").read_text()) for folder in (alone, tmp_path / "run"))
    assert one == pytest.approx(two, rel=1e-3)
    assert (tmp_path / "run" / "student" / "model_index.json").is_file()
    if launcher == "torchrun":  # one process, nothing sharded, goes on where two with a sharded teacher were
        earlier = tmp_path / "run" / "checkpoints" / "step-000002"
        train_here(wan, tmp_path / "on", resume=str(earlier))
        assert_same(alone, tmp_path / "on")


def test_one_process_without_a_launcher_may_offload(wan, alone, tmp_path):
    trained(ALONE, [*wan, "--set=distributed.teacher=zero3_offload", "--output", "run"], tmp_path)
    assert_same(alone, tmp_path / "run", tolerance=0)


def test_a_shared_base_is_sharded_and_its_adapters_are_whole(wan, tmp_path):
    shared = [*wan, "--set=model.roles=shared_base", "--set=train.gradient_checkpointing=true"]
    train_here(shared, tmp_path / "alone")
    trained(LAUNCHERS["torchrun"], [*shared, "--set=distributed.teacher=zero3", "--output", "run"], tmp_path)
    assert_same(tmp_path / "alone", tmp_path / "run")
    one, two = (load_file(tmp_path / run / "student" / "lora" / "pytorch_lora_weights.safetensors") for run in ("alone", "run"))
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-4, atol=1e-4)
    one, two = (load_file(next((tmp_path / run / "student" / "transformer").glob("*.safetensors"))) for run in ("alone", "run"))
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-4, atol=1e-4)


def test_wrappers_of_accelerate_are_refused(wan, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(InputError, match="the recipe's distributed section says what is sharded"):
        train_here(wan, tmp_path / "run")


@pytest.mark.parametrize("setting", ["train.compile=true", "train.real=teacher"])
def test_what_a_sharded_teacher_cannot_do_is_said(setting, wan):
    settings = [argument.removeprefix("--set=") for argument in wan[4:]]
    with pytest.raises(InputError, match=f"{setting.partition('=')[0]}: .*set distributed.teacher to none"):
        recipe.load(wan[1], get_plugin_manager(), [*settings, setting, "distributed.teacher=zero3"], "dmd")
