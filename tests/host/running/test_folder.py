"""The run's folder: what it holds, and what happens when it is not what the run expects."""

import io
import json
import os
import signal

import pytest
import torch
from diffusers import DiTTransformer2DModel, FlowMatchEulerDiscreteScheduler
from rich.console import Console
from safetensors.torch import load_file

from amd_plugin.errors import InputError, MissingDependency, RunError
from amd_plugin.hookspecs import hookimpl
from amd_plugin.host import checkpoint, run
from amd_plugin.host.running.dry_run import dry_run
from amd_plugin.host.running.preemption import Preempted
from amd_plugin.host.running.recipe_changes import finished
from amd_plugin.host.training.trainer import Trainer


def test_what_a_run_leaves(tiny, plugins, tmp_path):
    folder = tmp_path / "run"
    evaluation = run.train(tiny("train.evaluate_every=2", "train.trackers=[tensorboard]"), plugins, folder)
    assert json.loads((folder / "evaluation.json").read_text()) == evaluation
    assert set(evaluation) == {"precision", "coverage", "tv", "sliced_wasserstein", "mmd", "diversity"}
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss/student" in line] == [1, 2, 3, 4]
    assert [line["step"] for line in lines if "held_out/tv" in line] == [2, 4]
    assert all("objective/zone_share" in line for line in lines if "loss/student" in line)
    assert list(folder.glob("tensorboard/amd-plugin/events*")), "TensorBoard wrote nothing"
    assert {p.name for p in folder.iterdir()} >= {"config.yaml", "run.json", "checkpoints", "samples", "student"}
    assert (folder / "samples" / "step-000004.png").stat().st_size > 1000
    card = (folder / "student" / "README.md").read_text()
    assert "precision" in card and "set_timesteps(1)" in card


def test_the_exported_digits_student_is_plain_diffusers_and_is_what_was_evaluated(tiny, plugins, tmp_path):
    folder = tmp_path / "run"
    overrides = ("model.heads=1", "model.student_steps=2", "train.max_steps=2", "model.teacher.steps=5")
    run.train(tiny(*overrides, name="digits"), plugins, folder)
    network = DiTTransformer2DModel.from_pretrained(folder / "student" / "transformer")
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "student" / "scheduler")
    evaluated = load_file(folder / "samples" / "latest.safetensors")

    from amd_plugin.randomness import generator

    draws = generator(0, "evaluation")
    x = torch.randn(evaluated["samples"].shape, generator=draws)
    scheduler.set_timesteps(2)
    for t in scheduler.timesteps:
        with torch.no_grad():
            output = network(x, timestep=t.expand(len(x)), class_labels=evaluated["labels"]).sample
        x = scheduler.step(output, t, x, generator=draws).prev_sample
    torch.testing.assert_close(x, evaluated["samples"])


def test_folders_that_do_not_fit(tiny, plugins, tmp_path):
    folder = tmp_path / "run"
    run.train(tiny(), plugins, folder)
    before = (folder / "config.yaml").read_text()
    with pytest.raises(InputError, match="holds a run already"):
        run.train(tiny(), plugins, folder)
    with pytest.raises(InputError, match=r"another recipe(.|\n)*train.student_lr: 0.001 -> 0.5"):
        run.train(tiny("train.student_lr=0.5"), plugins, folder, resume="auto")
    assert (folder / "config.yaml").read_text() == before
    other = tmp_path / "photos"
    other.mkdir()
    (other / "cat.jpg").write_text("")
    with pytest.raises(InputError, match="holds no run"):
        run.train(tiny(), plugins, other)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        run.train(tiny(), plugins, tmp_path / "file")
    with pytest.raises(InputError, match="cannot be written"):
        run.train(tiny(), plugins, tmp_path / "file" / "below")
    with pytest.raises(InputError, match="no such folder"):
        run.train(tiny(), plugins, tmp_path / "new", resume=str(tmp_path / "nowhere"))
    assert not (tmp_path / "new").exists()


def test_resume_skips_a_broken_checkpoint(tiny, plugins, tmp_path):
    folder = tmp_path / "run"
    run.train(tiny("train.checkpoint_every=2"), plugins, folder)
    (folder / "checkpoints" / "step-000004" / "student.safetensors").write_bytes(b"")
    run.train(tiny("train.max_steps=5"), plugins, folder, resume="auto")
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines() if "loss/student" in line]
    assert steps == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_signals_stop_at_a_step_boundary_with_a_checkpoint(tiny, plugins, tmp_path, signum, code):
    before = signal.getsignal(signum)

    class Interrupt:
        @hookimpl
        def distill_on_step(self, step):
            if step == 2:
                os.kill(os.getpid(), signum)

    interrupt = Interrupt()
    plugins.register(interrupt)
    folder = tmp_path / "run"
    with pytest.raises(Preempted, match="go on with: amd-plugin train --resume") as caught:
        run.train(tiny(), plugins, folder)
    assert caught.value.exit_code == code
    assert [p.name for p in checkpoint.available(folder / "checkpoints")] == ["step-000002"]
    plugins.unregister(interrupt)
    straight = run.train(tiny(), plugins, tmp_path / "straight")
    assert run.train(tiny(), plugins, folder, resume="auto") == straight
    assert signal.getsignal(signum) == before


def test_a_signal_is_answered_while_the_fake_score_warms_up(tiny, plugins, tmp_path, monkeypatch):
    recipe, updates = tiny("train.fake_warmup=5"), []
    monkeypatch.setattr(run, "Trainer", lambda *arguments: updates_counted(Trainer(*arguments), updates))
    folder, console = tmp_path / "run", Console(file=io.StringIO(), width=200)
    with pytest.raises(Preempted, match="stopped after 2 updates of the fake score, which are not saved; begin again with"):
        run.train(recipe, plugins, folder, console=console)
    assert updates == [0, 1] and "training the fake score, 5 updates before the student's first" in console.file.getvalue()
    assert not checkpoint.available(folder / "checkpoints")
    monkeypatch.undo()
    assert run.train(recipe, plugins, folder, resume="auto") == run.train(recipe, plugins, tmp_path / "straight")


def updates_counted(trainer, updates):
    """`trainer`, which notes its updates of the fake score, and whose second one gets a signal."""
    turn = trainer.fake_score_turn

    def counted(update, warm_up=None):
        updates.append(warm_up)
        if len(updates) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return turn(update, warm_up)

    trainer.fake_score_turn = counted
    return trainer


def test_errors_survive_the_way_back_from_a_worker():
    import pickle

    from amd_plugin.errors import OptionError

    back = pickle.loads(pickle.dumps(Preempted("stopped", signal.SIGTERM)))
    assert str(back) == "stopped" and back.exit_code == 143
    back = pickle.loads(pickle.dumps(OptionError("strength", "too much")))
    assert str(back) == "strength: too much" and back.option == "strength"


def test_dry_run_writes_nothing(tiny, plugins, tmp_path):
    said = dry_run(tiny("model.student_steps=4"), plugins, tmp_path / "run")
    assert said["visited timesteps"] == [1000.0, 750.0, 500.0, 250.0] and said["fake-score updates"] == 12
    assert not (tmp_path / "run").exists()


def test_a_dry_run_whose_default_folder_is_taken_says_what_the_run_needs(tiny, plugins, tmp_path):
    loaded = tiny()
    (tmp_path / "config.yaml").write_text(loaded.as_yaml())
    (tmp_path / "run.json").write_text('{"recipe": "modes2d", "objective": "amd"}')
    assert "--output FOLDER" in dry_run(loaded, plugins, tmp_path, named=False)["needs"]
    for resume, named in ((None, True), (str(tmp_path / "checkpoints" / "step-000003"), False)):
        with pytest.raises(InputError):
            dry_run(loaded, plugins, tmp_path, resume, named=named)


def test_nothing_is_left_behind_by_input_that_cannot_be_used(tiny, plugins, tmp_path):
    class Needy:
        @hookimpl
        def distill_rewards(self):
            return {"needy": lambda: open("/no/such/weights")}

    plugins.register(Needy())
    with pytest.raises(InputError, match="'needy' could not be built"):
        run.train(tiny("rewards=[{name: needy}]"), plugins, tmp_path / "run")
    with pytest.raises(InputError, match=r"train.trackers.0: unknown tracker.*Did you mean 'tensorboard'"):
        run.train(tiny("train.trackers=[tensorbord]"), plugins, tmp_path / "run")
    with pytest.raises(InputError, match=r"train.trackers.0: unknown tracker, got 'all'"):
        dry_run(tiny("train.trackers=[all]"), plugins, tmp_path / "run")
    with pytest.raises(MissingDependency, match=r"'comet_ml' is not installed\. pip install comet_ml"):
        run.train(tiny("train.trackers=[comet_ml]"), plugins, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_checkpoints_know_their_recipe(tiny, plugins, tmp_path):
    run.train(tiny(), plugins, tmp_path / "one")
    path = tmp_path / "one" / "checkpoints" / "step-000004"
    with pytest.raises(InputError, match=r"is of another recipe(.|\n)*train.seed: 0 -> 5"):
        run.train(tiny("train.seed=5"), plugins, tmp_path / "two", resume=str(path))
    with pytest.raises(InputError, match=r"beyond train.max_steps 2"):
        run.train(tiny("train.max_steps=2"), plugins, tmp_path / "two", resume=str(path))
    with pytest.raises(InputError, match=r"is a run's folder. Name one of the folders in [^,]*checkpoints$"):
        run.train(tiny(), plugins, tmp_path / "two", resume=str(tmp_path / "one"))
    assert not (tmp_path / "two").exists()
    for step in path.parent.iterdir():
        (step / "manifest.json").write_text('{"format": 99, "files": {}}')
    before = (tmp_path / "one" / "metrics.jsonl").read_text()
    with pytest.raises(InputError, match="none of the checkpoints"):
        run.train(tiny(), plugins, tmp_path / "one", resume="auto")
    assert (tmp_path / "one" / "metrics.jsonl").read_text() == before


def test_a_run_counts_as_finished_only_with_the_same_settings_and_to_its_end(tiny, plugins, tmp_path):
    folder = tmp_path / "run"
    evaluation = run.train(tiny(), plugins, folder)
    assert finished(folder, tiny()) == evaluation == finished(folder, tiny("train.log_every=3"))
    (folder / "config.yaml").write_text("model: [")
    with pytest.raises(InputError, match=r"train.max_steps: 4 -> 9"):
        finished(folder, tiny("train.max_steps=9"))

    class Stop:
        @hookimpl
        def distill_on_step(self, step):
            os.kill(os.getpid(), signal.SIGTERM)

    plugins.register(Stop())
    with pytest.raises(Preempted):
        run.train(tiny("train.max_steps=9"), plugins, folder, resume="auto")
    assert finished(folder, tiny("train.max_steps=9")) is None


def test_a_cycle_that_fails_leaves_the_exact_checkpoint_of_its_beginning(tiny, plugins, tmp_path):
    class Late:
        calls = 0

        @hookimpl
        def distill_rewards(self):
            def reward(media, prompts):
                Late.calls += 1
                return media[:, 0] if Late.calls != 11 else 1 / 0

            return {"late": lambda: reward}

    class Careless:
        @hookimpl
        def distill_state_dict(self):
            return "careless", {"not json": object()}

    plugins.register(Late())
    plugins.register(Careless(), "careless")
    recipe = tiny("rewards=[{name: late}]", "train.checkpoint_every=1", "train.decay=constant")
    straight = run.train(
        tiny("rewards=[{name: late}]", "train.max_steps=2", "train.decay=constant"), plugins, tmp_path / "short"
    )
    assert "not JSON serializable" in plugins.statuses["careless"].cause
    Late.calls = 0
    with pytest.raises(RunError, match="ZeroDivisionError"):
        run.train(recipe, plugins, tmp_path / "run")
    one, two = (load_file(tmp_path / r / "checkpoints" / "step-000002" / "fake_score.safetensors") for r in ("short", "run"))
    assert straight and all(torch.equal(one[name], two[name]) for name in one)
