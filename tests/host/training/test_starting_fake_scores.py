"""A fake score that starts from the one of another run, whether both are conditioned on the outcome or not."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from amd_plugin.errors import InputError
from amd_plugin.host import checkpoint, run
from amd_plugin.host.training.trainer import Trainer

ROOT = Path(__file__).parents[3]
GUIDED = "objective.advantage_guidance=4"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of a run of DMD and of one of AMD with advantage guidance, two steps each."""
    from amd_plugin import get_plugin_manager, recipe
    from tests.helpers.recipes import TINY

    folder, plugins = tmp_path_factory.mktemp("runs"), get_plugin_manager()
    for name, objective, more in (("dmd", "dmd", ()), ("amd", "amd", (GUIDED,))):
        run.train(recipe.load("modes2d", plugins, (*TINY, "train.max_steps=2", *more), objective), plugins, folder / name)
    return folder


def started(tiny, plugins, path, *settings, objective=None):
    return Trainer(tiny(f"model.fake_score_from={path}", *settings, objective=objective), plugins, Accelerator(cpu=True))


@pytest.mark.parametrize(("start", "objective"), [("dmd", "amd"), ("amd", "dmd"), ("amd", "amd")])
def test_it_has_the_weights_of_the_other_run(start, objective, runs, tiny, plugins):
    folder = runs / start / "checkpoints" / "step-000002"
    saved = load_file(folder / "fake_score.safetensors")
    for path in (runs / start, folder):
        trainer = started(tiny, plugins, path, *([GUIDED] if objective == "amd" else []), objective=objective)
        own = trainer.fake_score.state_dict()
        shared = own.keys() & {name.removeprefix(".") for name in saved}
        assert len(shared) > 4
        for name in shared:
            assert torch.equal(own[name], saved[name if name in saved else f".{name}"]), name
        for name in own.keys() - shared:  # outcomes that the other run lacks change nothing until they are trained
            assert name.startswith("outcomes.") and not own[name].any()
        trainer.cycle()


def test_what_does_not_fit_is_said(runs, tiny, plugins, tmp_path):
    with pytest.raises(InputError, match=r"model.fake_score_from: .* does not fit: .* there and .* in this run's fake score"):
        started(tiny, plugins, runs / "dmd", "model.width=32")
    for path, words in ((tmp_path / "nothing", "checkpoint .*: there is no"), (tmp_path, ".*: is no checkpoint")):
        with pytest.raises(InputError, match=f"model.fake_score_from: {words}"):
            started(tiny, plugins, path)
    without = tmp_path / "step-000002"
    shutil.copytree(runs / "dmd" / "checkpoints" / "step-000002", without)
    state = json.loads((without / "state.json").read_text())
    del state["rest"]["fake_score"]
    (without / "state.json").write_text(json.dumps(state))
    checkpoint.write_manifest(without)
    with pytest.raises(InputError, match=r"model.fake_score_from: checkpoint .* holds no fake_score"):
        started(tiny, plugins, without)
    with pytest.raises(InputError, match=r"model.fake_score_from: needs the whole network in one place"):
        tiny("model.fake_score_from=runs/first", "distributed.trained=zero3")


def test_the_start_that_comes_with_the_source_fits_its_recipe(plugins, monkeypatch):
    from amd_plugin import recipe

    monkeypatch.chdir(ROOT)
    settings = ("model.student_from=benchmarks/starts/scenes/student", "model.fake_score_from=benchmarks/starts/scenes")
    trainer = Trainer(recipe.load("scenes", plugins, settings), plugins, Accelerator(cpu=True))
    teacher, student, fake_score = (role.state_dict() for role in (trainer.teacher, trainer.student, trainer.fake_score))
    for own in (student, fake_score):
        assert all(value.dtype == torch.float32 for value in own.values())
        assert not torch.equal(own["conv_in.weight"], teacher["conv_in.weight"])
    assert not torch.equal(student["conv_in.weight"], fake_score["conv_in.weight"])
