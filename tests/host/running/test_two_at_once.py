"""Two processes in one folder: one works, the other is told who does, and nothing is harmed."""

import subprocess
import sys
import threading

import pytest

from amd_plugin.errors import InputError
from amd_plugin.evaluate.comparison.arms import arms
from amd_plugin.evaluate.comparison.compare import compare
from amd_plugin.host import checkpoint, run
from amd_plugin.host.running.folder_lock import FolderLock
from amd_plugin.host.running.run_description import about
from amd_plugin.host.student.export import export_run

HOLD = (
    "import sys; from pathlib import Path; from amd_plugin.host.running.folder_lock import FolderLock\n"
    "folder = Path(sys.argv[1]); folder.mkdir(exist_ok=True); lock = FolderLock(folder); lock.acquire()\n"
    "print('held', flush=True); sys.stdin.read()"
)


@pytest.fixture
def holder(tmp_path):
    """A process that works in tmp_path/run and tmp_path/compare."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", HOLD, tmp_path / name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for name in ("run", "compare")
    ]
    assert [process.stdout.readline() for process in processes] == ["held\n"] * 2
    yield processes
    for process in processes:
        process.kill()
        process.wait()


def test_a_second_trainer_and_a_second_comparison_are_told_who_is_there(holder, tiny, plugins, tmp_path):
    for resume in (None, "auto"):
        with pytest.raises(InputError, match=rf"process {holder[0].pid} on .* is at work in it"):
            run.train(tiny(), plugins, tmp_path / "run", resume)
    chosen = arms(["dmd", "amd"], plugins, tiny().config.rewards)
    with pytest.raises(InputError, match=rf"process {holder[1].pid} on .* is at work in it"):
        compare("modes2d", chosen, [0], (), tmp_path / "compare", plugins)
    for name in ("run", "compare"):
        assert {path.name for path in (tmp_path / name).iterdir()} <= {".lock", ".holder.json"}


def test_exports_while_a_run_goes_on_are_whole_and_the_run_is_the_same(tiny, plugins, tmp_path, monkeypatch):
    recipe = tiny("train.checkpoint_every=1", "train.keep_checkpoints=2")
    straight = run.train(recipe, plugins, tmp_path / "straight")
    exported, failed, saves, original = [], [], [], run.save

    def export(output):
        try:
            exported.append(export_run(tmp_path / "run", plugins, output))
        except InputError as error:
            failed.append(error)

    def save(*arguments):
        path = original(*arguments)
        export(None)  # in the run's own folder, and another one while the run goes on
        saves.append(threading.Thread(target=export, args=(tmp_path / f"student-{len(saves)}",)))
        saves[-1].start()
        return path

    monkeypatch.setattr(run, "save", save)
    assert run.train(tiny("train.checkpoint_every=1", "train.keep_checkpoints=2"), plugins, tmp_path / "run") == straight
    for thread in saves:
        thread.join()
    assert len(exported) + len(failed) == 8 and len(exported) >= 4
    assert all("checkpoint" in str(error) for error in failed)
    assert (tmp_path / "run" / "student" / "README.md").is_file()
    assert len(checkpoint.available(tmp_path / "run" / "checkpoints")) == 2
    assert [path.name for path in (tmp_path / "run").glob(".*.tmp")] == []


def test_a_run_that_began_and_ended_while_another_prepared_stays_as_it_is(tiny, plugins, tmp_path, monkeypatch):
    """Teachers and prompts of the slower one may take minutes; it moved the other's checkpoints aside, and its config.yaml away."""
    folder, original = tmp_path / "run", run.Trainer

    def slow(*arguments):
        monkeypatch.setattr(run, "Trainer", original)
        run.train(tiny(objective="dmd"), plugins, folder)
        return original(*arguments)

    monkeypatch.setattr(run, "Trainer", slow)
    with pytest.raises(InputError, match="another process has begun a run there meanwhile"):
        run.train(tiny("train.max_steps=2"), plugins, folder)
    assert [path.name for path in checkpoint.available(folder / "checkpoints")] == ["step-000004"]
    assert about(folder).objective == "dmd" and (folder / "evaluation.json").is_file()


def test_a_second_evaluation_is_told_who_is_there(cli, tiny, plugins, tmp_path):
    folder = tmp_path / "run"
    run.train(tiny(), plugins, folder)
    (folder / "evaluation").mkdir()
    lock = FolderLock(folder / "evaluation")
    lock.acquire()
    code, printed = cli("evaluate", folder, "--samples", 40)
    assert code == 2 and "is at work in it" in printed and not (folder / "evaluation" / "drawn.json").exists()
    lock.release()
    assert cli("evaluate", folder, "--samples", 40, "--no-teacher")[0] == 0
