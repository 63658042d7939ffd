"""Pictures of a run's folder that somebody else made: only pictures get into a report or a card, and only those of the folder."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import save_file

from amd_plugin import get_plugin_manager
from amd_plugin import recipe as recipes
from amd_plugin.evaluate.report import gallery
from amd_plugin.evaluate.report.report import write_report
from amd_plugin.host import run
from amd_plugin.host.student.export import export_run
from tests.helpers.recipes import TINY

PLUGINS = get_plugin_manager()
SECRET = "hf_a_key_of_whoever_makes_the_report"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    run.train(recipes.load("modes2d", PLUGINS, (*TINY, "train.evaluate_every=2")), PLUGINS, folder)
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    (tmp_path / "secret").write_text(SECRET)
    return shutil.copytree(whole, tmp_path / "run")


@pytest.mark.parametrize("kind", ["link to a secret", "pipe", "device", "folder", "text"])
def test_what_is_no_picture_is_left_out(kind, folder, caplog):
    picture = folder / "samples" / "step-000004.png"
    picture.unlink()
    {
        "link to a secret": lambda: picture.symlink_to(folder.parent / "secret"),
        "pipe": lambda: os.mkfifo(picture),
        "device": lambda: picture.symlink_to("/dev/zero"),
        "folder": picture.mkdir,
        "text": lambda: picture.write_text(SECRET),
    }[kind]()
    assert [step for step, _ in gallery.over_time({"amd": folder})] == [2]
    student = export_run(folder, PLUGINS)
    assert "step-000004.png: cannot be shown" in caplog.text and "the model card goes without it" in caplog.text
    assert not list(student.glob("samples.*")) and (student / "README.md").is_file()
    assert SECRET not in write_report([folder], folder / "report.html", PLUGINS).read_text()


@pytest.mark.parametrize("name", ["../../secret.png", "/etc/hostname", "samples/../../../secret.png", 3, None])
def test_pairs_lie_in_the_evaluation(name, folder, caplog):
    shutil.copy(folder / "samples" / "step-000002.png", folder.parent / "secret.png")
    (folder / "evaluation").mkdir()
    (folder / "evaluation" / "pairs.json").write_text(json.dumps([{"prompt": "a", "teacher": name, "student": name}]))
    assert gallery.pairs(folder) == [] and "pairs.json: cannot be read: 0.teacher" in caplog.text


@pytest.mark.parametrize("content", ["{", "3", "[3]", '{"a": 1}', "[" * 5000])
def test_damaged_lists_are_left_out(content, folder, caplog):
    (folder / "evaluation").mkdir()
    for path in (folder / "evaluation" / "pairs.json", folder / "samples" / "prompts.json"):
        path.write_text(content)
    assert gallery.pairs(folder) == gallery.prompts(folder) == []
    assert caplog.text.count("The report goes without it") == 2


def test_a_picture_that_is_too_large_is_not_read(folder, caplog):
    with (folder / "samples" / "step-000004.png").open("ab") as file:
        file.truncate(2**40)
    assert [step for step, _ in gallery.over_time({"amd": folder})] == [2] and "268,435,456 bytes at most" in caplog.text


LATEST = {
    "cut": lambda file: file.write_bytes(file.read_bytes()[:-9]),
    "text": lambda file: file.write_text(SECRET),
    "of another shape": lambda file: save_file({"samples": torch.zeros(4, 3), "labels": torch.arange(4)}, file),
    "fewer labels": lambda file: save_file({"samples": torch.zeros(4, 2), "labels": torch.arange(3)}, file),
    "labels that are none": lambda file: save_file({"samples": torch.zeros(2, 2), "labels": torch.tensor([0, 99])}, file),
    "no labels": lambda file: save_file({"samples": torch.zeros(4, 2)}, file),
    "a pipe": lambda file: (file.unlink(), os.mkfifo(file)),
}


@pytest.mark.parametrize("harm", LATEST)
def test_samples_that_are_damaged_have_no_panel(harm, folder, caplog):
    LATEST[harm](folder / "samples" / "latest.safetensors")
    assert "data:image/png" in write_report([folder], folder / "report.html", PLUGINS).read_text()
    assert harm == "a pipe" or ("latest.safetensors" in caplog.text and "the report goes without it" in caplog.text)
