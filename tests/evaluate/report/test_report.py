"""The report of runs that are not at their end, as it is typed."""

import json
import re
import shutil
from html import escape

import pytest
from safetensors.torch import load_file, save_file

from amd_plugin.evaluate.report import beside, figures, report
from amd_plugin.evaluate.students import evaluation
from amd_plugin.host import run
from amd_plugin.models import teacher_samples
from amd_plugin.models.teacher_samples import samples_of
from amd_plugin.recipe.loading import load


@pytest.fixture
def stopped(tiny, plugins, tmp_path):
    """A run with two evaluations and no result, as one that goes on, was stopped, or failed."""
    folder = tmp_path / "run"
    run.train(tiny("train.evaluate_every=2"), plugins, folder)
    (folder / "evaluation.json").unlink()
    return folder


def test_a_run_without_a_result_is_reported_so_far_and_drawn_again_where_its_samples_changed(cli, stopped, monkeypatch):
    code, printed = cli("report", stopped)
    assert code == 0, printed
    page = (stopped / "report.html").read_text()
    assert "not finished: 4 of 4 updates" in page and f"amd-plugin train --resume {stopped}" in page
    assert page.count("data:image/png;base64,") == 4 and page.count("data:image/svg+xml;base64,") == 6 and "<td>" in page
    assert "seconds per student update" in page and "most memory" in page
    assert re.search(r"samples scored per student update</td><td>\d+<", page)
    drawn = []
    anew = lambda draft, *_: drawn.append([(draft / f"{name}.png").write_bytes(b"anew") for name in ("picture", "teacher")])  # noqa: E731
    monkeypatch.setattr(beside, "_draw", anew)
    assert cli("report", stopped)[0] == 0
    assert (stopped / "report.html").read_text() == page and drawn == []
    latest = stopped / beside.LATEST
    save_file({name: tensor.flip(0) for name, tensor in load_file(latest).items()}, latest)
    assert cli("report", stopped)[0] == 0
    assert drawn and figures.inline(b"anew", "png") in (stopped / "report.html").read_text()


def test_a_run_that_failed_before_its_first_evaluation_is_reported_too(cli, stopped):
    shutil.rmtree(stopped / "samples")
    for logged in ("\n", None):
        if logged is None:
            (stopped / "metrics.jsonl").unlink()
        else:
            (stopped / "metrics.jsonl").write_text("")
        code, printed = cli("report", stopped)
        assert code == 0, printed
        page = (stopped / "report.html").read_text()
        assert "not finished: 0 of 4 updates" in page and page.count("data:image/png;base64,") == 1


def test_the_report_advises_only_what_the_recipe_takes(cli, tiny, plugins, tmp_path, monkeypatch):
    folder, made = tmp_path / "digits", []
    monkeypatch.setattr(teacher_samples, "samples_of", lambda *given: made.append(samples_of(*given)) or made[-1])
    run.train(tiny("model.heads=1", "model.teacher.steps=2", "train.max_steps=1", name="digits"), plugins, folder)
    assert cli("report", folder)[0] == 0
    page = (folder / "report.html").read_text()
    assert [len(samples) for samples in made] == [80], "as many of the teacher as are drawn, and not the evaluation's 160"
    assert "--set data.label_noise=0 the teacher" in page and "outliers" not in page
    assert "over several seeds with amd-plugin compare digits." in page
    about = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**about, "recipe": "mine"}))
    assert cli("report", folder)[0] == 0 and "amd-plugin compare" not in (folder / "report.html").read_text()
    assert page.count("<img ") == page.count(' alt="') and "prefers-color-scheme: dark" in page


def test_a_pipelines_report_has_prompts_and_the_teacher_beside_the_student(cli, piped, plugins, tmp_path):
    folder = tmp_path / "run"
    run.train(piped("sdxl", "train.evaluate_every=1"), plugins, folder)
    assert cli("report", folder)[0] == 0
    page = (folder / "report.html").read_text()
    prompts = json.loads((folder / "samples" / "prompts.json").read_text())
    assert prompts and all(escape(prompt) in page for prompt in prompts)
    assert f"amd-plugin evaluate {folder}, then" in page and "after 1 student update<" in page
    evaluation.evaluate(folder, plugins, samples=8)
    assert cli("report", folder)[0] == 0
    page = (folder / "report.html").read_text()
    assert f'alt="Sample of the teacher for: {escape(prompts[0])}"' in page and "then the report again" not in page
    assert page.count("<img ") == page.count(' alt="')


def test_equal_runs_have_equal_charts():
    curves = {"amd": [[{"step": step, "held_out/tv": 1 / step} for step in (1, 2, 3)]]}
    one, other = (figures.learning_curves(curves, {"held_out/tv": "tv"}, figures.colours(["amd"])) for _ in range(2))
    assert one == other


def test_whose_the_teacher_is_follows_from_its_seed(plugins):
    own, shared = (report._whose_teacher(load(name, plugins).config) for name in ("modes2d", "scenes"))
    assert own.startswith("Every seed trains its own") and shared.startswith("All seeds have one")


def test_what_is_said_of_the_teacher_follows_from_its_data(plugins):
    def said(name, *overrides):
        return report._caveat(load(name, plugins, overrides).config)

    assert "20% of its training labels are random" in said("modes2d")
    assert "AMD should gain little" in said("modes2d", "data.label_noise=0", "data.outliers=0")
    assert "gets wrong by itself" in said("scenes")
