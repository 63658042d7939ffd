"""What a run has written is the same whether it was stopped or not; files that rot or get lost are noticed."""

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from amd_plugin.errors import InputError, RunError
from amd_plugin.host import checkpoint, run
from amd_plugin.host.running import run_description, run_folder
from amd_plugin.host.running.preemption import Preempted
from amd_plugin.interrupts import Interrupted
from amd_plugin.tasks import TASKS

EVERY = ("train.max_steps=6", "train.log_every=3", "train.evaluate_every=3", "train.checkpoint_every=2")


class Killed(BaseException):
    """Where a process is killed; what a run would do in answer is to raise it too."""


def leave(step):
    raise Interrupted(step)


def same(one, two):
    newest = max((two / "checkpoints").glob("step-*")).name
    for file in sorted((two / "checkpoints" / newest).glob("*.safetensors")):
        first, second = load_file(one / "checkpoints" / newest / file.name), load_file(file)
        assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first), file.name
    for name in ("metrics.jsonl", "evaluation.json"):
        assert (one / name).read_text() == (two / name).read_text(), name


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The folder of a run that nothing disturbed."""
    from amd_plugin import get_plugin_manager, recipe
    from tests.helpers.recipes import TINY

    folder = tmp_path_factory.mktemp("straight") / "run"
    plugins = get_plugin_manager()
    run.train(recipe.load("modes2d", plugins, (*TINY, *EVERY)), plugins, folder)
    return folder


@pytest.mark.parametrize(
    "place", ["a checkpoint", "an evaluation", "the student", "a line", "the last evaluation", "an old checkpoint's removal"]
)
def test_killed_anywhere_metrics_and_weights_are_equal_to_the_bit(place, straight, tiny, plugins, tmp_path, monkeypatch):
    from amd_plugin.host.running import run_log

    module, name, call = {
        "a checkpoint": (run, "save", 2),
        "an evaluation": (TASKS["modes2d"], "evaluate", 1),
        "the last evaluation": (TASKS["modes2d"], "evaluate", 2),
        "the student": (run, "export", 1),
        "a line": (run_log.RunLog, "write", 2),
        "an old checkpoint's removal": (checkpoint.files, "remove_folder", 1),
    }[place]
    original, calls = getattr(module, name), []

    def killed(*arguments, **options):
        calls.append(1)
        if len(calls) >= call:
            raise Killed
        return original(*arguments, **options)

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(module, name, killed)
        patch.setattr(run, "rescue", lambda *arguments, **options: killed())
        with pytest.raises(RunError if place == "the student" else Killed):
            run.train(tiny(*EVERY), plugins, folder)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "half a li')
    run.train(tiny(*EVERY), plugins, folder, resume="auto")
    same(straight, folder)
    assert {*os.listdir(folder / "checkpoints")} == {*os.listdir(straight / "checkpoints")}


def test_a_start_from_another_run_is_remembered_until_there_is_a_checkpoint(
    straight, tiny, plugins, tmp_path, monkeypatch, caplog
):
    """A run that was killed before its first checkpoint went on from the teacher, without a word."""
    shutil.copytree(straight / "checkpoints" / "step-000004", start := tmp_path / "other" / "step-000004")
    recipe, folder = tiny(*EVERY), tmp_path / "run"
    for resume in (str(start), "auto"):
        with monkeypatch.context() as patch:
            patch.setattr(run, "_loop", lambda trainer, *rest: leave(trainer.step))
            with pytest.raises(Interrupted, match="4"):
                run.train(recipe, plugins, folder, resume=resume)
    aside = start.rename(tmp_path / "aside")
    with pytest.raises(InputError, match=r"the run began from another's, which cannot be used: (.|\n)*Name another"):
        run.train(recipe, plugins, folder, resume="auto")
    aside.rename(start)
    run.train(recipe, plugins, folder, resume="auto")
    newest = load_file(folder / "checkpoints" / "step-000006" / "student.safetensors")
    expected = load_file(straight / "checkpoints" / "step-000006" / "student.safetensors")
    assert all(torch.equal(newest[name], expected[name]) for name in expected)


@pytest.mark.parametrize("changed", ["train.log_every=2", "train.max_steps=4"])
def test_a_line_that_is_due_before_the_first_update_of_a_run_that_goes_on(changed, straight, tiny, plugins, tmp_path):
    shutil.copytree(straight, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-000006")
    run.train(tiny(*EVERY, changed), plugins, tmp_path / "run", resume="auto")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss/student" in line][:2] == [3, 4]


@pytest.mark.parametrize(("signum", "step"), [(signal.SIGTERM, 3), (signal.SIGINT, 3), (signal.SIGTERM, 6)])
def test_a_signal_in_an_evaluation_is_answered_there_and_repeated_ones_are_one(
    signum, step, straight, tiny, plugins, tmp_path, monkeypatch
):
    evaluate, calls = TASKS["modes2d"].evaluate, []

    def endless(self, media, labels, samples):
        calls.append(1)
        if 3 * len(calls) < step:
            return evaluate(self, media, labels, samples)
        os.kill(os.getpid(), signum)
        os.kill(os.getpid(), signum)
        raise AssertionError("the evaluation went on")

    with monkeypatch.context() as patch:
        patch.setattr(TASKS["modes2d"], "evaluate", endless)
        with pytest.raises(Preempted, match=f"stopped after step {step}") as caught:
            run.train(tiny(*EVERY), plugins, tmp_path / "run")
    assert caught.value.exit_code == 128 + signum
    run.train(tiny(*EVERY), plugins, tmp_path / "run", resume="auto")
    same(straight, tmp_path / "run")
    states = [(folder / "checkpoints/step-000006/state.json").read_text() for folder in (straight, tmp_path / "run")]
    assert states[0] == states[1], "the last checkpoint holds the last evaluation"


@pytest.mark.parametrize("told", [True, False])  # whether what calls the library learns that something failed
def test_a_signal_that_a_library_takes_for_a_failure_of_its_own(told, straight, tiny, plugins, tmp_path, monkeypatch):
    """As matplotlib does while it measures a text: "Invalid bounding box"."""
    evaluate = TASKS["modes2d"].evaluate

    def measured(self, media, labels, samples):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except BaseException:
            if told:
                raise ValueError("Invalid bounding box") from None
            media = media + 1
        return evaluate(self, media, labels, samples)

    with monkeypatch.context() as patch:
        patch.setattr(TASKS["modes2d"], "evaluate", measured)
        with pytest.raises(Preempted, match="stopped after step 3"):
            run.train(tiny(*EVERY), plugins, tmp_path / "run")
    run.train(tiny(*EVERY), plugins, tmp_path / "run", resume="auto")
    same(straight, tmp_path / "run")


def test_a_flipped_byte_is_noticed_and_the_checkpoint_before_is_taken(straight, tiny, plugins, tmp_path, caplog, cli):
    folder = tmp_path / "run"
    run.train(tiny(*EVERY), plugins, folder)
    weights = folder / "checkpoints" / "step-000006" / "student.safetensors"
    content = bytearray(weights.read_bytes())
    content[-3] ^= 16
    weights.write_bytes(content)
    with pytest.raises(InputError, match=r"step-000006: is damaged: the bytes of student.safetensors"):
        checkpoint.load(weights.parent)
    code, printed = cli("doctor", folder)
    assert code == 1 and "step-000006: PROBLEM" in printed and "step-000004: is whole" in printed
    run.train(tiny(*EVERY), plugins, folder, resume="auto")
    assert "step-000006: is damaged" in caplog.text and "left out" in caplog.text
    same(straight, folder)
    assert cli("doctor", folder)[0] == 0


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("manifest.json", '{"format": 2, "files": {"state.json": "x"}}'),
        ("manifest.json", "[" * 9000),
        ("manifest.json", '{"format": 1, "files": {"../state.json": 3}}'),
        ("state.json", '{"step": "4"}'),
        ("state.json", '{"step": 4, "rest": {"student": {"tensor": 5}}}'),
        ("state.json", '{"step": 1e999}'),
        ("state.json", "\udcff"),
    ],
)
def test_state_from_a_file_is_input(saved, file, content):
    path = saved
    (path / file).write_bytes(content.encode(errors="surrogateescape"))
    if file == "state.json":  # by somebody who knows the format
        manifest = {"format": 1, "files": {name.name: name.stat().st_size for name in path.iterdir()}}
        (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="Use an earlier one"):
        checkpoint.load(path)


def test_a_manifest_of_the_first_format_need_not_have_checksums_of_all_files(saved):
    manifest = json.loads((saved / "manifest.json").read_text()) | {"format": 1}
    del manifest["checksums"]["state.json"]
    (saved / "manifest.json").write_text(json.dumps(manifest))
    assert checkpoint.load(saved)[1]["step"] == 4


@pytest.fixture
def saved(tmp_path):
    return checkpoint.save(tmp_path, 4, {"student": torch.nn.Linear(2, 2).state_dict()}, {}, keep=1)


def test_what_is_not_finite_is_never_a_checkpoint(tmp_path):
    with pytest.raises(ValueError, match="student: w holds NaN or an infinity"):
        checkpoint.save(tmp_path, 4, {"student": {"w": torch.tensor([1.0, torch.nan])}}, {}, keep=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("how", ["gone", "empty", "cut", "binary"])
def test_a_folder_that_lost_its_description_is_repaired(how, straight, tiny, plugins, tmp_path, caplog):
    folder = tmp_path / "run"
    run.train(tiny(*EVERY), plugins, folder)
    before = (folder / "config.yaml").read_text()
    for name in ("config.yaml", "run.json"):
        path = folder / name
        content = {"gone": None, "empty": b"", "cut": path.read_bytes()[:60], "binary": b"\xff\x00\xfe" * 9}[how]
        path.unlink() if content is None else path.write_bytes(content)
    found = run_description.find_run(folder, plugins)
    assert found.name == "modes2d" and (folder / "config.yaml").read_text() == before
    assert caplog.text.count("written anew from") == 2


def test_two_at_once_are_told_apart(tiny, plugins, tmp_path):
    folder = tmp_path / "run"
    run.train(tiny(), plugins, folder)
    code = "import sys; from pathlib import Path; from amd_plugin.host.running.folder_lock import FolderLock\n"
    code += f"lock = FolderLock(Path({str(folder)!r})); lock.acquire(); print('held', flush=True); sys.stdin.read()"
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=rf"process {holder.pid} on .* is at work in it"):
            run.train(tiny("train.max_steps=5"), plugins, folder, resume="auto")
    finally:
        holder.kill()  # a lock is no longer held by a process that is dead, whatever stands in its file
        holder.wait()
    run.train(tiny("train.max_steps=5"), plugins, folder, resume="auto")


def test_what_was_rescued_in_the_middle_of_a_step_is_named_and_not_preferred(straight, tiny, plugins, tmp_path, caplog):
    folder = tmp_path / "run"
    from amd_plugin.host.training.trainer import Trainer

    original = Trainer.student_turn

    def breaks(trainer, *rest):
        if trainer.step == 3:
            raise ZeroDivisionError
        return original(trainer, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "student_turn", breaks)
        with pytest.raises(RunError, match="step-000003-partial, with a part of the step"):
            run.train(tiny(*EVERY), plugins, folder)
    run.train(tiny(*EVERY), plugins, folder, resume="auto")
    assert "going on from step-000002, which is exact" in caplog.text
    same(straight, folder)
    assert checkpoint.partials(folder / "checkpoints") == []


@pytest.mark.parametrize("place", ["the evaluation is told to others", "the sums of a step"])
def test_what_a_process_that_died_leaves_is_equal_to_the_bit(place, straight, tiny, plugins, tmp_path, monkeypatch):
    """The main process is told of it by its next communication, and saves what it has."""
    from amd_plugin.host.evaluation import evaluate
    from amd_plugin.host.running import run_log

    def lost(*arguments, **options):
        raise RuntimeError("Connection reset by peer")

    add, folder = run_log.RunLog.add, tmp_path / "run"
    with monkeypatch.context() as patch:
        if place == "the sums of a step":  # after the checkpoint of step 2
            patch.setattr(run_log.RunLog, "add", lambda log, metrics: lost() if log.step == 3 else add(log, metrics))
        else:
            patch.setattr(evaluate, "broadcast_object_list", lost)
        with pytest.raises(RunError, match="-partial" if place == "the sums of a step" else "saved .*step-000003;"):
            run.train(tiny(*EVERY), plugins, folder)
    run.train(tiny(*EVERY), plugins, folder, resume="auto")
    same(straight, folder)


@pytest.mark.parametrize("step", [0, 3])
def test_without_a_checkpoint_a_part_of_a_step_is_named_and_the_run_begins_again(
    step, tiny, plugins, tmp_path, caplog, monkeypatch
):
    """To go on from it is not to the bit what an undisturbed run would give. A damaged one was chosen too, again and again."""
    from amd_plugin.host.training.trainer import Trainer

    original, folder, recipe = Trainer.student_turn, tmp_path / "run", tiny(*EVERY, "train.checkpoint_every=0")

    def breaks(trainer, *rest):
        if trainer.step == step:
            raise ZeroDivisionError
        return original(trainer, *rest)

    started = []
    monkeypatch.setattr(run, "restore", lambda trainer, path: started.append(path))
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "student_turn", breaks)
        with pytest.raises(RunError, match=f"step-00000{step}-partial, with a part of the step"):
            run.train(recipe, plugins, folder)
    (part,) = checkpoint.partials(folder / "checkpoints")
    whole = run_folder.find_checkpoint(folder, recipe, "auto")
    assert whole is None and f"beginning again, which is exact and repeats {step} steps" in caplog.text
    (part / "student.safetensors").write_bytes(b"")
    result = run.train(recipe, plugins, folder, resume="auto")
    assert "student.safetensors should have" in caplog.text and not started
    assert result == run.train(recipe, plugins, tmp_path / "straight")
    assert (folder / "metrics.jsonl").read_text() == (tmp_path / "straight" / "metrics.jsonl").read_text()


def test_a_checkpoint_that_another_machine_put_aside_is_found_and_its_drafts_are_gone(straight, plugins, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(straight, folder)
    checkpoints = folder / "checkpoints"
    (checkpoints / "step-000006").rename(checkpoints / ".step-000006.elsewhere_0123-1.old")
    (checkpoints / ".step-000008.elsewhere_0123-1.tmp").mkdir()
    from amd_plugin.recipe.loading import load

    started, restore = [], run.restore
    recipe = load(str(folder / "config.yaml"), plugins)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "restore", lambda trainer, path: (started.append(path.name), restore(trainer, path))[1])
        run.train(recipe, plugins, folder, resume="auto")
    assert started == ["step-000006"] and [*checkpoints.glob(".*")] == []
