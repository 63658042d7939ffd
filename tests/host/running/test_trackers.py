"""What trackers are told, by the real libraries. Those that are no dependency are tested where they are installed."""

import io
import json
import signal
import sqlite3
import time

import pytest
from PIL import Image

from amd_plugin.errors import InputError
from amd_plugin.host import run
from amd_plugin.interrupts import Interrupted

NAMED = ("train.project=my project", "train.run_name=first try", "train.evaluate_every=2")
TOLD = {
    "learning_rate/student",
    "learning_rate/fake_score",
    "time/seconds_per_update",
    "memory/gigabytes",
    "held_out/precision",
}


def train_and_go_on(tiny, plugins, folder, tracker):
    run.train(tiny(f"train.trackers=[{tracker}]", *NAMED), plugins, folder)
    run.train(tiny(f"train.trackers=[{tracker}]", "train.max_steps=6", *NAMED), plugins, folder, resume="auto")


def test_tensorboard(tiny, plugins, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run.train(tiny("train.trackers=[tensorboard]", "train.project=my project", name="modes2d"), plugins, tmp_path / "run")
    board = EventAccumulator(str(tmp_path / "run" / "tensorboard" / "my project"))
    board.Reload()
    assert TOLD < set(board.Tags()["scalars"])
    (picture,) = board.Images("samples")
    assert picture.step == 4 and Image.open(io.BytesIO(picture.encoded_image_string)).format == "PNG"
    (settings,) = (tmp_path / "run" / "tensorboard").rglob("hparams.yml")
    assert "train.student_lr" in settings.read_text() and "rewards.0.name: classifier" in settings.read_text()


def test_a_video_stays_one_in_tensorboard(tmp_path):
    from types import SimpleNamespace

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    from amd_plugin.host.running.trackers import SENDERS

    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    with SummaryWriter(tmp_path / "events") as writer:
        SENDERS["tensorboard"](SimpleNamespace(writer=writer), tmp_path / "moving.gif", 3)
    board = EventAccumulator(str(tmp_path / "events"))
    board.Reload()
    (picture,) = board.Images("samples")
    assert Image.open(io.BytesIO(picture.encoded_image_string)).n_frames == 2


def test_wandb_offline(tiny, plugins, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    folder = tmp_path / "run"
    train_and_go_on(tiny, plugins, folder, "wandb")
    runs = sorted(folder.glob("wandb/offline-run-*"))
    assert len({path.name.rsplit("-", 1)[1] for path in runs}) == 1 and len(runs) == 2, "the continuation is another run"
    assert len(list(folder.glob("wandb/offline-run-*/files/media/images/samples_*.png"))) == 3
    content = b"".join(path.read_bytes() for path in folder.glob("wandb/offline-run-*/*.wandb"))
    for word in ("my project", "first try", "train.student_lr", *TOLD):
        assert word.encode() in content, word


def test_trackio(tiny, plugins, tmp_path, monkeypatch):
    pytest.importorskip("trackio")
    from trackio import sqlite_storage
    from trackio.sqlite_storage import SQLiteStorage

    monkeypatch.setattr(sqlite_storage, "TRACKIO_DIR", tmp_path / "trackio")
    train_and_go_on(tiny, plugins, tmp_path / "run", "trackio")
    assert SQLiteStorage.get_runs("my project") == ["first try"]
    logs = SQLiteStorage.get_logs("my project", "first try")
    assert set().union(*logs) > {*TOLD, "samples"} and max(line["step"] for line in logs) == 6
    assert "train.student_lr" in SQLiteStorage.get_run_config("my project", "first try")


def test_mlflow(tiny, plugins, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.chdir(tmp_path)
    train_and_go_on(tiny, plugins, tmp_path / "run", "mlflow")
    (found,) = mlflow.search_runs(experiment_names=["my project"], output_format="list")
    assert found.info.run_name == "first try" and found.info.status == "FINISHED" and set(found.data.metrics) > TOLD
    assert found.data.params["train.max_steps"] == "4" and found.data.params["objective.name"] == "amd"
    pictures = mlflow.MlflowClient().list_artifacts(found.info.run_id, "images")
    assert len([picture for picture in pictures if picture.path.endswith(".png")]) == 3


class Failing:
    name = "failing"

    def log(self, values, step):
        raise sqlite3.OperationalError("disk full")


def test_a_tracker_that_fails_is_left_out_and_the_run_goes_on(caplog, tmp_path):
    from amd_plugin.host.running.trackers import Trackers

    trackers = Trackers()
    trackers._working = [Failing()]
    trackers.log({"loss": 1.0}, 1)
    trackers.log({"loss": 1.0}, 2)
    trackers.picture(tmp_path / "none.png", 2)
    trackers.close()
    assert caplog.text.count("tracker failing failed and is not used any more: OperationalError: disk full") == 1


def test_a_tracker_that_does_not_start_is_a_message(tiny, plugins, tmp_path, monkeypatch):
    from torch.utils import tensorboard

    def refuse(*arguments, **options):
        raise PermissionError("no room")

    monkeypatch.setattr(tensorboard, "SummaryWriter", refuse)
    with pytest.raises(InputError, match=r"train\.trackers: tensorboard cannot be started: PermissionError: no room"):
        run.train(tiny("train.trackers=[tensorboard]"), plugins, tmp_path / "run")


def test_names_in_trackers_do_not_change_a_result(tiny, plugins, tmp_path):
    folder = tmp_path / "run"
    run.train(tiny(), plugins, folder)
    run.train(tiny("train.project=other", "train.run_name=name"), plugins, folder, resume="auto")
    assert json.loads((folder / "evaluation.json").read_text())
    with pytest.raises(InputError, match=r"train\.project"):
        tiny("train.project='../elsewhere'")


@pytest.mark.parametrize("step", [1, 3])  # before the first checkpoint, and after it
def test_tensorboard_shows_every_step_once_after_a_kill(step, tiny, plugins, tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from amd_plugin.host.training.trainer import Trainer

    original, folder = Trainer.student_turn, tmp_path / "run"

    def killed(trainer, *rest):
        if trainer.step == step:
            raise Interrupted(signal.SIGTERM)  # as a second signal does: nothing is saved
        return original(trainer, *rest)

    recipe = tiny("train.trackers=[tensorboard]", "train.checkpoint_every=2")
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "student_turn", killed)
        with pytest.raises(Interrupted):
            run.train(recipe, plugins, folder)
    time.sleep(1)  # TensorBoard orders files by the second of their start, and then by a number that it sorts as text
    run.train(recipe, plugins, folder, resume="auto")
    board = EventAccumulator(str(folder / "tensorboard" / "amd-plugin"))
    board.Reload()
    assert [event.step for event in board.Scalars("loss/student")] == [1, 2, 3, 4]
