"""The trackers of a run: accelerate starts them; here are their names, what they are told, and pictures, which it cannot send.

A tracker that fails while a run goes on is left out with a warning: metrics.jsonl has its numbers, and training is worth more.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from amd_plugin.atomic import write_text
from amd_plugin.choices import trackers
from amd_plugin.disk import dispensable
from amd_plugin.errors import InputError, MissingDependency, did_you_mean, in_words
from amd_plugin.json_files import read
from amd_plugin.recipe.loading import Recipe

if TYPE_CHECKING:  # reading a run's log must not wait for accelerate
    from accelerate import Accelerator
    from accelerate.tracking import GeneralTracker

log = logging.getLogger(__name__)

FILE = "trackers.json"  # in the run's folder: the ids by which a continued run goes on in the same place
NEW_ONES = "A continuation of this run begins a new one in its trackers"
PICTURE = "samples"  # the name under which trackers show pictures


class Trackers:
    """The trackers of a run that work: none before `start`, and none on all but the main process."""

    def __init__(self) -> None:
        self._working: list[GeneralTracker] = []

    def start(self, accelerator: Accelerator, recipe: Recipe, output: Path, step: int = 0) -> None:
        """Starts the trackers that the recipe names, and gives them the resolved recipe. Call on the main process only.

        Args:
            accelerator: the run's processes.
            recipe: the run's recipe.
            output: the run's folder.
            step: the step that the run goes on from, 0 where it begins, perhaps again; TensorBoard cuts what came after it, as
                metrics.jsonl does.

        Raises:
            InputError: where one does not start, e.g. without a login.
        """
        train = recipe.config.train
        if not train.trackers:
            return
        earlier = _earlier(output / FILE)
        name = train.run_name or output.absolute().name
        own = {  # arguments of the trackers for the name of a run, and for going on with it
            "wandb": {"name": name, "dir": str(output), "id": earlier.get("wandb"), "resume": "allow"},
            "trackio": {"name": earlier.get("trackio", name), "resume": "allow", "embed": False},
            "tensorboard": {"purge_step": step + 1} if (output / "tensorboard").is_dir() else {},
            "mlflow": {"run_name": name, "run_id": earlier.get("mlflow")},
        }
        try:
            accelerator.init_trackers(train.project, None, own)
            for tracker in accelerator.trackers:
                if not (tracker.name == "mlflow" and "mlflow" in earlier):  # it refuses a parameter that has changed
                    tracker.store_init_configuration(_flat(recipe.as_dict()))
        except Exception as error:
            names = ", ".join(train.trackers)
            raise InputError(f"train.trackers: {names} cannot be started: {in_words(error)}") from error
        self._working, accelerator.trackers = accelerator.trackers, []
        ids = {tracker.name: IDS[tracker.name](tracker) for tracker in self._working if tracker.name in IDS}
        if ids:
            with dispensable(output / FILE, NEW_ONES.lower()):
                write_text(output / FILE, json.dumps(ids, indent=1))

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Sends numbers to all trackers."""
        self._each(lambda tracker: tracker.log(dict(values), step=step))

    def picture(self, path: Path, step: int) -> None:
        """Sends the PNG or GIF at `path` to those trackers that are known to take one."""
        self._each(lambda tracker: SENDERS[tracker.name](tracker, path, step) if tracker.name in SENDERS else None)

    def close(self) -> None:
        """Sends what is left, and ends the runs of the trackers."""
        self._each(lambda tracker: tracker.finish())
        self._working = []

    def _each(self, action: Callable[[GeneralTracker], None]) -> None:
        for tracker in tuple(self._working):
            try:
                action(tracker)
            except Exception as error:  # whatever the tracker's own code and its server do
                self._working.remove(tracker)
                log.warning("tracker %s failed and is not used any more: %s", tracker.name, in_words(error))


def check_trackers(names: Sequence[str]) -> None:
    """Refuses trackers of a recipe that cannot be used.

    Raises:
        InputError: for an unknown name.
        MissingDependency: where the package of one is not installed.
    """
    from accelerate.tracking import get_available_trackers

    available = {str(tracker) for tracker in get_available_trackers()}
    known = trackers()
    for index, name in enumerate(names):
        if name not in known:
            hint = did_you_mean(name, known)
            raise InputError(f"train.trackers.{index}: unknown tracker, got '{name}'.{hint}")
        if name not in available:
            raise MissingDependency(f"train.trackers.{index}: the package of '{name}' is not installed. pip install {name}")


IDS: dict[str, Callable[[Any], str]] = {
    "wandb": lambda tracker: str(tracker.run.id),
    "trackio": lambda tracker: str(tracker.run.name),
    "mlflow": lambda tracker: str(tracker.active_run.info.run_id),
}


def _earlier(path: Path) -> dict[str, str]:
    """The ids in the file of an earlier start; none where it is damaged, with a warning."""
    try:
        return read(path, dict[str, str], NEW_ONES) if path.exists() else {}
    except InputError as error:
        log.warning("%s", error)
        return {}


def _flat(value: Any, path: str = "") -> dict[str, bool | int | float | str]:
    """A recipe as ``section.key`` -> value, as trackers show it: without what is not set, and lists of plain values as text."""
    if isinstance(value, dict) or (isinstance(value, list) and any(isinstance(entry, dict) for entry in value)):
        entries = value.items() if isinstance(value, dict) else enumerate(value)
        return {k: v for key, entry in entries for k, v in _flat(entry, f"{path}.{key}" if path else str(key)).items()}
    if value is None:
        return {}
    return {path: value if isinstance(value, bool | int | float | str) else json.dumps(value)}


def _to_tensorboard(tracker: Any, path: Path, step: int) -> None:
    # The event file takes an encoded picture as it is, so that a GIF stays one and no package for videos is needed.
    from tensorboard.compat.proto.summary_pb2 import Summary

    with Image.open(path) as picture:
        width, height = picture.size
    image = Summary.Image(encoded_image_string=path.read_bytes(), width=width, height=height, colorspace=3)
    tracker.writer.file_writer.add_summary(Summary(value=[Summary.Value(tag=PICTURE, image=image)]), step)


def _to_wandb(tracker: Any, path: Path, step: int) -> None:
    import wandb

    moving = path.suffix == ".gif"
    tracker.log({PICTURE: wandb.Video(str(path), format="gif") if moving else wandb.Image(str(path))}, step=step)


def _to_trackio(tracker: Any, path: Path, step: int) -> None:
    import trackio

    moving = path.suffix == ".gif"
    tracker.log({PICTURE: trackio.Video(path, format="gif") if moving else trackio.Image(path)}, step=step)


def _to_mlflow(tracker: Any, path: Path, step: int) -> None:
    import mlflow

    if path.suffix == ".gif":  # its images over time are still
        mlflow.log_artifact(str(path), PICTURE)
        return
    with Image.open(path) as picture:
        mlflow.log_image(picture, key=PICTURE, step=step)


SENDERS: dict[str, Callable[[Any, Path, int], None]] = {
    "tensorboard": _to_tensorboard,
    "wandb": _to_wandb,
    "trackio": _to_trackio,
    "mlflow": _to_mlflow,
}
