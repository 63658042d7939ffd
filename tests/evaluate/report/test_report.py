"""The report of runs that are not at their end, as it is typed."""

import json
import re
import shutil
from html import escape
from types import SimpleNamespace

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from amd_plugin.errors import InputError
from amd_plugin.evaluate.comparison.result import Comparison, run_folder
from amd_plugin.evaluate.report import beside, figures, report
from amd_plugin.evaluate.students import evaluation
from amd_plugin.evaluate.students.results import _histograms
from amd_plugin.host import run
from amd_plugin.host.evaluation.pictures import as_written, picture
from amd_plugin.host.running.run_description import saved_config
from amd_plugin.host.student import model_card
from amd_plugin.models import teacher_samples
from amd_plugin.models.teacher_samples import samples_of
from amd_plugin.recipe.loading import load
from amd_plugin.tasks import TASKS


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


@pytest.mark.parametrize("content", [None, "", "model: ["])
def test_a_recipe_that_a_compared_run_has_lost_is_written_anew(content, tiny, plugins, tmp_path, caplog):
    arm = run_folder(tmp_path, "dmd", 0)
    values = {name: [value] for name, value in run.train(tiny("train.max_steps=1", objective="dmd"), plugins, arm).items()}
    Comparison(
        task="modes2d", recipe="modes2d", seeds=[0], arms={"dmd": values}, baseline="dmd", better=TASKS["modes2d"].metrics,
        held_out=[], teacher=values, command="",
    ).write(tmp_path)  # fmt: skip
    recipe = arm / "config.yaml"
    before = recipe.read_text()
    recipe.unlink() if content is None else recipe.write_text(content)
    report.write_report([tmp_path], tmp_path / "report.html", plugins)
    assert recipe.read_text() == before and "it was written anew" in caplog.text


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


def test_a_name_of_others_is_no_formula(tmp_path):
    """matplotlib reads a text with two dollars as one, and raises ValueError where it is none."""
    name = r"$\foo$"
    lines = [{"step": step, f"reward/{name}": 1 / step, f"held_out/{name}": 1.0} for step in (1, 2, 3)]
    shares = {key: 0.5 for weight in figures.WEIGHTS for key in figures._share_keys(weight)}
    lines = [{**line, **shares, "objective/zone_share/low": 0.1} for line in lines]
    curves, palette = {name: [lines]}, figures.colours([name])
    assert figures.learning_curves(curves, {f"reward/{name}": name}, palette)
    assert figures.quality_by_reward(curves, {f"reward/{name}": name}, {f"held_out/{name}": name}, palette)
    assert figures.weights_over_time(curves) and figures.zone_over_time(curves)
    assert figures.paired_seeds({arm: {"tv": [1.0]} for arm in ("dmd", name)}, {"tv": name}, figures.colours(["dmd", name]))
    assert model_card._draw_curves(lines, tmp_path / "curves.png")
    measured = {"student": SimpleNamespace(each={name: torch.arange(5.0)})}
    as_written(_histograms(measured, [name])).savefig(tmp_path / "metrics.png")
    task = SimpleNamespace(drawing=lambda media, labels: lambda axes, frame: axes.set_xlabel(name))
    assert picture(task, {name: (torch.zeros(1, 2), torch.zeros(1))})[1] == "png"


def test_values_that_no_axis_can_show_are_left_out(tmp_path):
    """matplotlib raises ValueError for a span that overflows; another program's metrics may have any number of JSON."""
    names, shares = ("held_out/tv", "reward/r"), [key for weight in figures.WEIGHTS for key in figures._share_keys(weight)]
    lines = [{"step": step, **dict.fromkeys((*names, *shares, "objective/zone_share/low"), value)}
             for step, value in enumerate((1e308, -1e308, 0.5, 1.5))]  # fmt: skip
    curves, palette = {"amd": [lines, lines]}, figures.colours(["amd", "dmd"])
    chart = figures.learning_curves(curves, {"held_out/tv": "tv"}, palette)
    assert [row[1] for row in chart.rows] == ["nan", "nan", "0.5", "1.5"]
    assert figures.quality_by_reward(curves, {"reward/r": "r"}, {"held_out/tv": "tv"}, palette)
    assert figures.weights_over_time(curves) and figures.zone_over_time(curves)
    assert figures.paired_seeds({arm: {"tv": [1e308, -1e308, 1.0]} for arm in ("dmd", "amd")}, {"tv": "tv"}, palette)
    assert model_card._draw_curves(lines, tmp_path / "curves.png")


@pytest.mark.parametrize(("section", "key", "value", "said"), [
    ("data", "task", "nonsense", r"data.task: unknown task, got 'nonsense'"), ("data", "geometry", "nope", r"data.geometry: must be"),
    ("data", "bogus", 3, r"data.bogus: unknown key"), ("model", "network", None, r"model: needs either path"),
    ("train", "reuse_rollouts", True, r"train.reuse_rollouts: was removed"), ("train", "reuse_rollouts", False, ""),
])  # fmt: skip
def test_the_recipe_of_a_strangers_run_is_checked_before_it_is_shown(section, key, value, said, tiny, plugins, tmp_path):
    """Each was a traceback, and a removed option that everything else takes was refused."""
    recipe = tiny().as_dict()
    recipe[section][key] = value
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(recipe))
    (tmp_path / "run.json").write_text(json.dumps({"recipe": "modes2d", "objective": "amd"}))
    if not said:
        assert saved_config(tmp_path).data.task == "modes2d"
        return
    with pytest.raises(InputError, match=rf"config.yaml:\d+:\d+: {said}"):
        report.write_report([tmp_path], tmp_path / "page.html", plugins)


def test_weights_are_drawn_where_all_of_them_are_logged():
    (first, *_), lines = figures._share_keys("alpha"), []
    for step in (1, 2):
        lines.append({"step": step, first: 0.5})
    assert figures.weights_over_time({"amd": [lines]}) is None


def test_whose_the_teacher_is_follows_from_its_seed(plugins):
    own, shared = (report._whose_teacher(load(name, plugins).config) for name in ("modes2d", "scenes"))
    assert own.startswith("Every seed trains its own") and shared.startswith("All seeds have one")


def test_what_is_said_of_the_teacher_follows_from_its_data(plugins):
    def said(name, *overrides):
        return report._caveat(load(name, plugins, overrides).config)

    assert "20% of its training labels are random" in said("modes2d")
    assert "AMD should gain little" in said("modes2d", "data.label_noise=0", "data.outliers=0")
    assert "gets wrong by itself" in said("scenes")
