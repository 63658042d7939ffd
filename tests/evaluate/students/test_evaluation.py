"""`amd-plugin evaluate` from a run's folder to its files: points, pictures and videos, classes and prompts."""

import json
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from amd_plugin.errors import InputError
from amd_plugin.evaluate.students import evaluation
from amd_plugin.evaluate.students.bootstrap import Interval
from amd_plugin.evaluate.students.evaluation import evaluate
from amd_plugin.evaluate.students.summary import _fields
from amd_plugin.host import checkpoint, run
from amd_plugin.host.student import export
from tests.helpers.recipes import TINY


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A finished tiny run on digits, trained on nothing that it is judged by."""
    from amd_plugin import get_plugin_manager, recipe

    plugins = get_plugin_manager()
    folder = tmp_path_factory.mktemp("digits") / "run"
    own = ("train.checkpoint_every=2", "evaluate.rewards=[{name: random}]", "train.evaluate_every=2")
    run.train(recipe.load("digits", plugins, (*TINY, *own), "amd"), plugins, folder)
    return folder


def read(folder):
    return json.loads((folder / "evaluation.json").read_text(), parse_constant=pytest.fail)


def test_held_out_rewards_are_curves_of_the_training_run(digits):
    lines = [json.loads(line) for line in (digits / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "held_out/random" in line] == [2, 4]
    assert "random" in json.loads((digits / "evaluation.json").read_text())


def test_networks_made_here_are_evaluated_and_exported_on_one_thread(digits, plugins, tmp_path, monkeypatch):
    """The last digits of a sum depend on how many share it, and so would those of a result on the cores that are free."""
    seen = []

    def watched(module, name):
        function = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, **k: (seen.append((name, torch.get_num_threads())), function(*a, **k))[1])

    for name in ("prepare", "measure", "_reference", "write_results"):
        watched(evaluation, name)
    watched(export, "export")
    torch.set_num_threads(2)
    try:
        evaluate(digits, plugins, tmp_path / "evaluation", samples=40, teacher=False)
        export.export_run(digits, plugins, tmp_path / "student")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert seen == [(name, 1) for name in ("prepare", "measure", "_reference", "write_results", "export")]


def test_digits_from_the_command_line(cli, digits):
    before = (digits / "evaluation.json").read_bytes()
    code, printed = cli("evaluate", digits, "--samples", 40)
    assert code == 0, printed
    assert all(f"\n{words}" in f"\n{printed}" for words in ("loading the student", "preparing", "computing distances"))
    folder = digits / "evaluation"
    assert (digits / "evaluation.json").read_bytes() == before, "the mark of a complete run was touched"
    content = read(folder)
    assert content["samples"] == 40 and content["prompts"] == 10 and content["step"] == 4
    assert content["trained_on"] == ["classifier"] and "real samples" in content["reference"]
    metrics = content["metrics"]
    assert metrics["reward/classifier"]["kind"] == "training reward"
    assert metrics["held_out/random"]["kind"] == "held-out reward"
    for name in ("frechet", "precision", "recall", "density", "coverage", "accuracy", "diversity", "reward/classifier"):
        row = metrics[name]
        assert row["low"] <= row["value"] <= row["high"] and row["teacher"]["value"] is not None, name
        assert f"{name}:" in printed
    assert metrics["accuracy"]["value"] == pytest.approx(content["task_metrics"]["accuracy"])
    assert metrics["accuracy"]["difference"]["value"] == pytest.approx(
        metrics["accuracy"]["value"] - metrics["accuracy"]["teacher"]["value"]
    )
    assert any("biased" in note for note in content["notes"])
    text = (folder / "evaluation.md").read_text()
    assert "training reward" in text and "held-out metric" in text and "![metrics](metrics.png)" in text
    assert (folder / "metrics.png").stat().st_size and (folder / "samples.png").stat().st_size
    assert len(list((folder / "samples").glob("*.png"))) == 40


def test_the_same_again_draws_nothing_and_says_the_same_and_more_samples_keep_the_first(digits, plugins, tmp_path):
    first = tmp_path / "first"
    evaluate(digits, plugins, first, samples=40, teacher=False)
    content, stamps = read(first), {p: p.stat().st_mtime_ns for p in first.glob("latents/*/*")}
    assert len(stamps) == 10
    cut = next(iter(stamps))
    kept = load_file(cut)["samples"].clone()  # what is mapped would change with the file
    cut.write_bytes(cut.read_bytes()[:100])  # as a full disk would leave it
    evaluate(digits, plugins, first, samples=40, teacher=False)
    assert read(first) == content and torch.equal(load_file(cut)["samples"], kept)
    assert all(p.stat().st_mtime_ns == stamp for p, stamp in stamps.items() if p != cut)
    evaluate(digits, plugins, first, samples=60, teacher=False)
    assert len(load_file(cut)["samples"]) == 6
    torch.testing.assert_close(load_file(cut)["samples"][:4], kept)


def test_samples_do_not_depend_on_the_batch(digits, plugins, tmp_path):
    evaluate(digits, plugins, tmp_path / "whole", samples=30, teacher=False)
    config = digits / "config.yaml"
    text = config.read_text()
    config.write_text(text.replace("batch_size: null", "batch_size: 2"))
    try:
        evaluate(digits, plugins, tmp_path / "parts", samples=30, teacher=False)
    finally:
        config.write_text(text)
    for path in (tmp_path / "whole").glob("latents/student/*"):
        other = load_file(tmp_path / "parts" / "latents" / "student" / path.name)
        torch.testing.assert_close(load_file(path), other)


def test_raw_weights_and_earlier_steps_differ_and_folders_are_not_mixed(digits, plugins, tmp_path):
    folder = tmp_path / "evaluation"
    evaluate(digits, plugins, folder, samples=40, teacher=False)
    with pytest.raises(InputError, match=r"holds an evaluation of step 4 \(ema\)"):
        evaluate(digits, plugins, folder, samples=40, weights="raw", teacher=False)
    found = [load_file(folder / "latents/student/00003.safetensors")["samples"]]
    for name, options in {"raw": {"weights": "raw"}, "early": {"at": "2"}}.items():
        evaluate(digits, plugins, tmp_path / name, samples=40, teacher=False, **options)
        found.append(load_file(tmp_path / name / "latents/student/00003.safetensors")["samples"])
        assert not torch.equal(found[0], found[-1])
    assert read(tmp_path / "early")["step"] == 2 and read(tmp_path / "raw")["weights"] == "raw"


def test_samples_of_other_weights_or_another_shape_do_not_count(digits, plugins, tmp_path):
    folder = tmp_path / "evaluation"
    evaluate(digits, plugins, folder, samples=40, teacher=False)
    files = sorted(folder.glob("latents/student/*"))
    first, second = (load_file(file)["samples"].clone() for file in files[:2])
    abouts = []
    for path in files[:2]:
        with safe_open(path, "pt") as file:
            abouts.append(file.metadata())
    save_file({"samples": first + 1}, files[0], {**abouts[0], "weights": "of others"})
    save_file({"samples": second[..., :-1].contiguous()}, files[1], abouts[1])
    evaluate(digits, plugins, folder, samples=40, teacher=False)
    assert torch.equal(load_file(files[0])["samples"], first) and torch.equal(load_file(files[1])["samples"], second)


def test_points_have_no_pictures_but_all_else(tiny, plugins, tmp_path):
    run.train(tiny(), plugins, tmp_path / "run")
    evaluated = evaluate(tmp_path / "run", plugins, samples=80)
    assert evaluated.suite.has_all_classes(evaluated.student.task)
    content = read(tmp_path / "run" / "evaluation")
    assert {"frechet", "precision", "accuracy", "diversity"} <= set(content["metrics"])
    assert "saturation" not in content["metrics"] and not (tmp_path / "run" / "evaluation" / "samples").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--checkpoint", "7"], "There are: 2, 4"),
        (["--checkpoint", "nowhere"], "there is no such folder"),
        (["--samples", "9"], "need at least"),
        (["--format", "vbench"], "name one with --prompts"),
        (["--samples", "3"], "at least 4 samples, got 3, of which 0 share out evenly"),
        (["--prompts", "nowhere.txt"], "there is no such file"),
        (["--prompts", "{file}"], "is asked for classes"),
        (["--output", "{full}"], "is not empty and holds no evaluation"),
        (["--output", "{file}"], "is not empty and holds no evaluation"),
    ],
)  # fmt: skip
def test_what_cannot_be_evaluated_is_said(cli, digits, tmp_path, arguments, said):
    full, file = tmp_path / "full", tmp_path / "prompts.txt"
    full.mkdir()
    (full / "cat.jpg").write_text("mine")
    file.write_text("a cat\n")
    code, printed = cli("evaluate", digits, *(a.format(file=file, full=full) for a in arguments))
    assert code == 2 and said in printed and "Traceback" not in printed, printed
    assert (full / "cat.jpg").read_text() == "mine"


def test_samples_that_do_not_share_out_evenly_are_said(cli, digits, tmp_path):
    code, printed = cli("evaluate", digits, "--samples", "25", "--no-teacher", "--output", tmp_path / "found")
    assert code == 0 and "20 samples instead of 25, equally many of each class or prompt" in printed
    assert read(tmp_path / "found")["samples"] == 20


def test_what_is_no_run_is_said(cli, digits, tmp_path):
    assert cli("evaluate", tmp_path)[0] == 2
    config = tmp_path / "config.yaml"
    config.write_text((digits / "config.yaml").read_text())
    code, printed = cli("evaluate", tmp_path)
    assert code == 2 and "holds no complete checkpoint" in printed
    (tmp_path / "run.json").write_text((digits / "run.json").read_text())
    code, printed = cli("evaluate", tmp_path)
    assert code == 2 and "holds no complete checkpoint" in printed
    config.write_text("model: [")
    assert cli("evaluate", tmp_path)[0] == 2


def test_a_student_whose_samples_are_not_finite_is_evaluated_in_valid_json(digits, tmp_path, cli, capfd):
    folder = tmp_path / "run"
    shutil.copytree(digits, folder)
    newest = folder / "checkpoints" / "step-000004"
    average = load_file(newest / "ema.safetensors")
    save_file({name: value * 1e30 if value.is_floating_point() else value for name, value in average.items()},
              newest / "ema.safetensors")  # fmt: skip
    checkpoint.write_manifest(newest)
    code, printed = cli("evaluate", folder, "--samples", 40)
    assert code == 0 and "frechet: -" in printed, printed
    text = (folder / "evaluation" / "evaluation.json").read_text()
    assert "Infinity" not in text and "NaN" not in text
    assert "samples have no finite value and are left out" in (folder / "evaluation" / "evaluation.md").read_text()
    assert "ERROR" not in capfd.readouterr().err


@pytest.mark.parametrize("ends", [(1.0, torch.inf), (-torch.inf, 1.0), (torch.nan, 1.0)])
def test_an_interval_has_both_ends_or_none(ends):
    assert _fields(Interval(1.0, *ends)) == {"value": 1.0, "low": None, "high": None}
