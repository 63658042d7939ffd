"""Samples that count as real, for adversarial losses and rollouts from data: the teacher's own, or encoded pictures."""

import pytest
import torch
from accelerate import Accelerator

from amd_plugin.host.training.real_samples import RealSamples
from amd_plugin.host.training.trainer import Trainer
from amd_plugin.models import teacher_samples
from amd_plugin.models.teacher_samples import samples_of

TEACHERS = ("objective.gan_weight=0.1", "train.real=teacher", "train.teacher_samples=8")


@pytest.fixture
def made(monkeypatch):
    """The labels of the samples that teachers make; those from the cache are not among them."""
    made = []
    monkeypatch.setattr(teacher_samples, "samples_of", lambda *given: made.append(given[2].tolist()) or samples_of(*given))
    return made


def trained(recipe, plugins):
    return Trainer(recipe, plugins, Accelerator(cpu=True))


def test_a_teachers_samples_are_of_training_prompts(piped, plugins, tmp_path, made):
    (tmp_path / "held-out.txt").write_text("a lake\na town\n")
    trainer = trained(piped("sdxl", *TEACHERS, f"data.held_out={tmp_path / 'held-out.txt'}"), plugins)
    _, labels = trainer.adversary._real.draw(8, torch.Generator().manual_seed(0), 0)
    assert made == [list(range(8))] and (labels >= 0).all()
    trainer.cycle()


@pytest.mark.parametrize(("change", "times"), [("nothing", 1), ("prompts", 2), ("model.negative_prompt=blurred", 2)])
def test_a_teachers_samples_are_made_anew_where_what_they_are_of_changes(change, times, piped, plugins, tmp_path, made):
    (tmp_path / "mine.txt").write_text("a fox\na hill\n")
    settings = (*TEACHERS, f"data.source={tmp_path / 'mine.txt'}")
    trained(piped("sdxl", *settings), plugins)
    if change == "prompts":
        (tmp_path / "mine.txt").write_text("a lake\na town\n")
    trained(piped("sdxl", *settings, *([change] if "=" in change else [])), plugins)
    assert len(made) == times


def test_a_shared_network_is_sampled_as_the_teacher(piped, plugins, monkeypatch):
    asked = []
    monkeypatch.setattr(teacher_samples, "samples_of", lambda *given: asked.append(given[7]) or samples_of(*given))
    trainer = trained(piped("sdxl", "model.roles=shared_base", *TEACHERS), plugins)
    assert asked == [trainer.teacher]


def test_pictures_are_encoded_a_micro_batch_at_a_time(tiny, plugins):
    recipe = tiny()
    trainer, sizes = trained(recipe, plugins), []
    trainer.backbone.encode = lambda media: sizes.append(len(media)) or media * 2
    real = RealSamples(recipe, trainer.backbone, trainer.task, trainer.teacher, 3, torch.device("cpu"))
    trainer.task.in_pixels = True
    whole, _ = real.draw(8, torch.Generator().manual_seed(0), 0)
    assert sizes == [3, 3, 2]
    trainer.backbone.encode = None
    plain, _ = real.draw(8, torch.Generator().manual_seed(0), 0)
    assert torch.equal(whole, plain * 2)


def test_a_process_encodes_its_own_rows_and_no_others(tiny, plugins):
    """What it gets is what it would have of the whole batch, in the same micro-batches."""
    recipe = tiny()
    trainer, sizes = trained(recipe, plugins), []
    trainer.backbone.encode = lambda media: sizes.append(len(media)) or media * 2
    trainer.task.in_pixels = True
    real = RealSamples(recipe, trainer.backbone, trainer.task, trainer.teacher, 2, torch.device("cpu"))
    whole, all_labels = real.draw(8, torch.Generator().manual_seed(0), 0)
    sizes.clear()
    own, labels = real.draw(8, torch.Generator().manual_seed(0), 0, slice(4, 8))
    assert sizes == [2, 2] and torch.equal(own, whole[4:]) and torch.equal(labels, all_labels)


def test_a_discriminators_turn_asks_for_the_rows_of_this_process(tiny, plugins):
    trainer = trained(tiny("train.accumulation=2", "train.fake_updates=1", objective="dmd2"), plugins)
    seen, draw = [], trainer.adversary._real.draw
    trainer.adversary._real.draw = lambda *given: (seen.append(given[3]), draw(*given))[1]
    trainer.cycle()
    assert seen == [slice(0, 16)]
