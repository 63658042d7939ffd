"""Resuming, as it is typed: a run goes on with what is in its folder."""

import json

import pytest

from amd_plugin.errors import InputError
from amd_plugin.host.running import folder_kind
from tests.helpers.recipes import ON_THE_COMMAND_LINE as TINY


def steps(folder):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line["step"] for line in lines if "loss/student" in line]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """``stopped(tmp_path)``: a copy of a run with checkpoints after every step and no end, as after a crash in step 3."""
    import shutil

    from amd_plugin import get_plugin_manager, recipe
    from amd_plugin.host import run

    folder = tmp_path_factory.mktemp("runs") / "mine"
    settings = [setting.removeprefix("--set=") for setting in TINY]
    manager = get_plugin_manager()
    every = ("train.checkpoint_every=1", "train.keep_checkpoints=3", "train.log_every=1")
    run.train(recipe.load("modes2d", manager, (*settings, *every), "dmd"), manager, folder)
    shutil.rmtree(folder / "checkpoints" / "step-000003")
    (folder / "evaluation.json").unlink()
    lines = [line for line in (folder / "metrics.jsonl").read_text().splitlines(True) if json.loads(line)["step"] < 3]
    (folder / "metrics.jsonl").write_text("".join(lines))
    return lambda tmp_path: shutil.copytree(folder, tmp_path / "mine")


@pytest.mark.parametrize("typed", ["a run", "in its folder", "by output", "the recipe again", "one checkpoint"])
def test_a_run_goes_on_without_its_settings_typed_again(cli, stopped, tmp_path, monkeypatch, typed):
    folder = stopped(tmp_path)
    monkeypatch.chdir(folder if typed == "in its folder" else tmp_path)
    arguments = {
        "a run": ["--resume", "mine"],
        "in its folder": ["--resume", "auto"],
        "by output": ["--output", "mine", "--resume", "auto"],
        "the recipe again": ["modes2d", "--objective", "dmd", "--output", "mine", "--resume", "auto"],
        "one checkpoint": ["--resume", "mine/checkpoints/step-000002"],
    }[typed]
    code, printed = cli("train", *arguments)
    assert code == 0, printed
    assert "step 3/3" in printed and "held out: precision" in printed
    assert steps(folder) == [1, 2, 3] and (folder / "evaluation.json").is_file()
    about = json.loads((folder / "run.json").read_text())
    assert about["recipe"] == "modes2d" and "train.max_steps=3" in about["overrides"]


def test_a_finished_run_says_so_and_can_be_made_longer(cli, stopped, tmp_path, monkeypatch):
    folder = stopped(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert cli("train", "--resume", "mine")[0] == 0
    code, printed = cli("train", "--resume", "mine")
    assert code == 0 and "finished, after 3 steps" in printed and "mine/student" in printed
    code, printed = cli("train", "--resume", "mine", "--set=train.max_steps=4")
    assert code == 0 and "step 4/4" in printed, printed
    code, printed = cli("train", "--resume", "mine")
    assert code == 0 and "finished, after 4 steps" in printed, "what was stated once is kept"
    assert steps(folder) == [1, 2, 3, 4]


def test_what_a_user_states_is_checked(cli, stopped, tmp_path, monkeypatch):
    folder = stopped(tmp_path)
    monkeypatch.chdir(tmp_path)
    before = (folder / "config.yaml").read_text()
    for arguments in (["--resume", "mine"], ["modes2d", "--objective=dmd", "--output=mine", "--resume=auto"]):
        code, printed = cli("train", *arguments, "--set=train.student_lr=0.5")
        assert code == 2 and "train.student_lr: 0.001 -> 0.5" in printed
    code, printed = cli("train", "--resume", "mine", "--objective", "amd")
    assert code == 2 and "objective.name: dmd -> amd" in printed
    code, printed = cli("train", "--resume", "mine", "--output", "other")
    assert code == 2 and "Traceback" not in printed
    assert (folder / "config.yaml").read_text() == before and not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "amd-plugin recipes list"),
        (["--resume", "nowhere"], "holds no run"),
        (["--resume", "auto"], "holds no run"),
        (["--resume", "auto", "--output", "nowhere"], "--output nowhere"),
    ],
)
def test_what_cannot_go_on_is_said(cli, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    code, printed = cli("train", *arguments)
    assert code == 2 and said in printed and "Traceback" not in printed


def test_going_on_from_an_earlier_checkpoint_sets_later_ones_aside(cli, stopped, tmp_path, monkeypatch, caplog):
    """Otherwise the next start takes the newest of the branch that was left, and keeping the newest deletes what is new."""
    folder = stopped(tmp_path)
    monkeypatch.chdir(tmp_path)
    checkpoints = folder / "checkpoints"
    weights = (checkpoints / "step-000002" / "student.safetensors").read_bytes()
    code, printed = cli("train", "--resume", "mine/checkpoints/step-000001", "--set=train.keep_checkpoints=1")
    assert code == 0 and "step-000002: of steps beyond 1" in caplog.text, printed
    assert sorted(path.name for path in checkpoints.iterdir()) == ["set-aside", "step-000003"]
    assert (checkpoints / "set-aside" / "step-000002" / "student.safetensors").read_bytes() == weights
    assert steps(folder) == [1, 2, 3]
    assert cli("train", "--resume", "mine")[1].count("finished, after 3 steps") == 1


def test_a_damaged_checkpoint_costs_no_later_one(cli, stopped, tmp_path, monkeypatch):
    folder = stopped(tmp_path)
    monkeypatch.chdir(tmp_path)
    file = folder / "checkpoints" / "step-000002" / "student.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    settings = ["--set=train.keep_checkpoints=1", "--set=train.max_steps=3"]
    for _ in range(2):  # the second time from what the first one saved
        code, printed = cli("train", "--resume", "mine", *settings)
        assert code == 0, printed
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["set-aside", "step-000003"]
    assert [path.name for path in (folder / "checkpoints" / "set-aside").iterdir()] == ["step-000002"]


def test_who_asks_for_any_run_where_there_is_none_is_told_of_one_in_runs(tmp_path, monkeypatch):
    (tmp_path / "runs" / "first").mkdir(parents=True)
    (tmp_path / "runs" / "first" / "config.yaml").write_text("{}")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"holds no run \(no config.yaml\). Name a run in it, such as runs/first"):
        folder_kind.continued("auto", None)
