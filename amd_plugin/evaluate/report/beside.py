"""The pictures of an embedded task: its data, its teacher and the students side by side; and the teacher alone.

Drawing it takes the networks and half a minute, most of it imports. It is kept until a student's samples change.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file

from amd_plugin.atomic import write_bytes
from amd_plugin.cache import cached
from amd_plugin.checksums import checksum
from amd_plugin.config import RecipeConfig
from amd_plugin.disk import regular
from amd_plugin.errors import InputError, unreadable_is_input_error
from amd_plugin.evaluate.report.figures import inline
from amd_plugin.host.evaluation import pictures
from amd_plugin.plugins import PluginManager
from amd_plugin.randomness import generator
from amd_plugin.tasks import Task, task_of

LATEST = Path("samples", "latest.safetensors")

log = logging.getLogger(__name__)


def beside(config: RecipeConfig, runs: Mapping[str, Path], seed: int, plugins: PluginManager) -> tuple[str, str]:
    """Two pictures as data URIs: one with a panel for each of `runs` that has been evaluated, and the teacher's own.

    The teacher's samples have labels and noise of the students' evaluations (on a CPU: other devices draw other noise).

    Args:
        config: recipe of the runs, which share data, teacher and number of samples.
        runs: title of a panel -> folder of a run.
        seed: the runs' seed.
        plugins: registry of the networks' families.
    """
    task = task_of(config.data, seed)
    files = {title: run / LATEST for title, run in runs.items() if _is_whole(run / LATEST, task)}
    made_of = {
        "data": config.data.model_dump(mode="json"), "model": config.model.model_dump(mode="json"), "seed": seed,
        "count": config.evaluate.samples, "batch": config.evaluate.batch_size,
        "students": [(title, checksum(file)) for title, file in files.items()],
        "drawing": [checksum(Path(file)) for file in (pictures.__file__, __file__)],
    }  # fmt: skip
    folder = cached(f"picture-{config.data.task}", made_of, lambda draft: _draw(draft, config, files, seed, plugins))
    (picture,), (teacher,) = folder.glob("picture.*"), folder.glob("teacher.*")
    return inline(picture.read_bytes(), picture.suffix[1:]), inline(teacher.read_bytes(), teacher.suffix[1:])


def _is_whole(file: Path, task: Task) -> bool:
    """Whether there are samples of the task in a file; says so where it holds anything else."""
    if not file.is_file():
        return False
    try:
        with unreadable_is_input_error(f"{file}: cannot be read"):
            latest = load_file(regular(file))
            samples, labels = latest["samples"], latest["labels"]
            fits = samples.is_floating_point() and samples.shape[1:] == task.sample_shape and labels.dtype == torch.int64
            if not fits or labels.shape != samples.shape[:1] or (task.num_classes and int(labels.max()) >= task.num_classes):
                raise InputError(f"{file}: holds no samples of {task.name} with their labels")
            task.prompts(labels)  # rows of a prompt set, where there are no classes
    except InputError as error:
        log.warning("%s; the report goes without it", str(error).removesuffix("."))
        return False
    return True


def _draw(folder: Path, config: RecipeConfig, files: Mapping[str, Path], seed: int, plugins: PluginManager) -> None:
    # They import diffusers, which a report of what lies there already does not wait for.
    from amd_plugin.models.backbone import load_backbone
    from amd_plugin.models.teacher_samples import SAMPLING_STEPS, samples_of

    batch = config.evaluate.batch_size
    task = task_of(config.data, seed)
    backbone = load_backbone(config.model, task, seed, plugins.families())
    labels, title = task.balanced_labels(config.evaluate.samples), f"teacher, {SAMPLING_STEPS} steps, no guidance"
    rows = task.drawn_rows(labels) if hasattr(task, "drawn_rows") else torch.arange(len(labels))
    made = samples_of(backbone, task, labels, generator(seed, "evaluation"), 1.0, batch, rows)
    samples = {"data": task.real_data(config.evaluate.samples, generator(0, "report")), title: (made, labels[rows])}
    for arm, file in files.items():
        latest = load_file(file)
        samples[arm] = (latest["samples"], latest["labels"])
    panels = {panel: (backbone.decode_in_parts(shown, batch), asked) for panel, (shown, asked) in samples.items()}
    still = all(pictures.frames_of(media) == 1 for media, _ in panels.values())
    content, kind = pictures.picture(task, panels, dpi=150 if still else 110)
    write_bytes(folder / f"picture.{kind}", content)
    pictures.save_samples(folder / "teacher", task, title, *panels[title])  # as a run's samples over time are drawn
