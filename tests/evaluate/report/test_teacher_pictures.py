"""The teacher beside its students: the same prompts, the same noise, and no more samples than are drawn."""

from types import SimpleNamespace

import pytest
import torch

from amd_plugin.evaluate.report.beside import beside
from amd_plugin.host import run
from amd_plugin.host.evaluation import pictures
from amd_plugin.host.training import trainer
from amd_plugin.models import teacher_samples
from amd_plugin.tasks import TASKS
from amd_plugin.tasks.scenes.task import Scenes


@pytest.mark.parametrize(("name", "evaluated", "drawn"), [("digits", 160, 80), ("moving_digits", 80, 40), ("scenes", 720, 48)])
def test_the_rows_that_are_drawn_make_the_picture_of_all(name, evaluated, drawn, monkeypatch):
    nothing_right = SimpleNamespace(right=torch.zeros(evaluated, dtype=torch.bool))
    monkeypatch.setattr(Scenes, "_verdict", lambda *_: nothing_right)  # its detectors take a minute to train
    task = TASKS[name]()
    labels = task.balanced_labels(evaluated)
    media, rows = (
        torch.rand(len(labels), *task.sample_shape, generator=torch.Generator().manual_seed(0)),
        task.drawn_rows(labels),
    )
    assert len(rows) == drawn
    assert pictures.picture(task, {"all": (media, labels)}) == pictures.picture(task, {"all": (media[rows], labels[rows])})


def test_teacher_and_students_start_from_the_same_noise(tiny, plugins, tmp_path, monkeypatch):
    panels = {}
    for module in (trainer, teacher_samples):
        monkeypatch.setattr(module, "sample", lambda predict, scheduler, steps, noise, draws: noise)
    loaded = tiny()
    run.train(loaded, plugins, tmp_path / "run")
    monkeypatch.setattr(pictures, "picture", lambda task, shown, dpi=0: (panels.update(shown), (b"", "png"))[1])
    beside(loaded.config, {"amd": tmp_path / "run"}, loaded.config.train.seed, plugins)
    (teacher, asked), (student, given) = panels["teacher, 30 steps, no guidance"], panels["amd"]
    assert torch.equal(asked, given) and torch.equal(teacher, student)
