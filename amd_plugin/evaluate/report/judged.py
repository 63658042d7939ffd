"""Prompts in rows: one noise through the teacher and each student, with the held-out judge's verdict under each picture.

For a task that names prompts to show. Drawing takes the networks, and is kept until a student's samples change.
"""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from amd_plugin.atomic import write_text
from amd_plugin.cache import cached
from amd_plugin.checksums import checksum
from amd_plugin.config import RecipeConfig
from amd_plugin.errors import InputError
from amd_plugin.evaluate.report.beside import LATEST
from amd_plugin.evaluate.report.figures import inline
from amd_plugin.plugins import PluginManager
from amd_plugin.randomness import generator
from amd_plugin.tasks import TASKS, Task

log = logging.getLogger(__name__)

if TYPE_CHECKING:
    import torch

    from amd_plugin.evaluate.students.samples import Sampler
    from amd_plugin.host.student.load import Student

# A prompt, with (the picture as a data URI, whether the judge finds it right) for the teacher and each student.
Row = dict[str, Any]


def judged(config: RecipeConfig, runs: Mapping[str, Path], seed: int, plugins: PluginManager) -> dict[str, Any] | None:
    """``columns``, their titles, and ``rows``, see `Row`; None for a task without such prompts, or runs without checkpoints.

    Args:
        config: recipe of the runs, which share data, teacher and number of samples.
        runs: title of a column -> folder of a run.
        seed: the runs' seed.
        plugins: registry of the recipe's plugins.
    """
    ready = {title: run for title, run in runs.items() if (run / LATEST).is_file() and any(run.glob("checkpoints/step-*"))}
    if not ready or config.model.path is not None or not hasattr(TASKS.get(config.data.task), "shown_labels"):
        return None
    made_of = {
        "data": config.data.model_dump(mode="json"), "model": config.model.model_dump(mode="json"), "seed": seed,
        "students": [(title, checksum(run / LATEST)) for title, run in ready.items()], "drawing": checksum(Path(__file__)),
    }  # fmt: skip
    try:
        folder = cached(f"judged-{config.data.task}", made_of, lambda draft: _draw(draft, ready, seed, plugins))
    except InputError as error:  # a damaged checkpoint
        log.warning("%s; the report goes without its table of prompts", str(error).removesuffix("."))
        return None
    found: dict[str, Any] = json.loads((folder / "judged.json").read_text(encoding="utf-8"))
    return found


def _draw(folder: Path, runs: Mapping[str, Path], seed: int, plugins: PluginManager) -> None:
    # They import diffusers, which a report of what lies there already does not wait for.
    import torch
    from accelerate import Accelerator

    from amd_plugin.evaluate.students.samples import prepare, student_sampler, teacher_sampler
    from amd_plugin.evaluate.students.suite import of_labels
    from amd_plugin.host.student.load import load_student
    from amd_plugin.models.teacher_samples import SAMPLING_STEPS

    accelerator, cells = Accelerator(cpu=True), dict[str, list[tuple[str, bool]]]()
    prompts: list[str] = []
    for title, run in runs.items():
        student = load_student(run, plugins)
        labels = student.task.shown_labels()  # type: ignore[attr-defined]  # see `judged`
        prepare(student, of_labels(student.task, labels), torch.device("cpu"))
        if not cells:
            prompts = student.task.prompts(labels)
            # Other numbers of a teacher, those of a comparison among them, are of unguided samples.
            guidance = student.recipe.objective.guidance_scale
            teacher = f"teacher, {SAMPLING_STEPS} steps, " + ("no guidance" if guidance == 1 else f"guidance {guidance:g}")
            cells[teacher] = _judged(student, teacher_sampler(student, accelerator), labels, seed)
        with student.with_weights("ema"):
            cells[title] = _judged(student, student_sampler(student, accelerator), labels, seed)
    rows = [{"prompt": prompt, "cells": [column[place] for column in cells.values()]} for place, prompt in enumerate(prompts)]
    write_text(folder / "judged.json", json.dumps({"columns": list(cells), "rows": rows, "credits": _credits(student.task)}))


def _judged(student: Student, sampler: Sampler, labels: torch.Tensor, seed: int) -> list[tuple[str, bool]]:
    """(picture, whether it is right) of a sample for each of `labels` [B]; a place has the same noise in every column."""
    import torch

    backbone, task = student.backbone, student.task
    with torch.no_grad():
        draws = [generator(seed, "shown", place) for place in range(len(labels))]
        noise = torch.stack([torch.randn(backbone.sample_shape, generator=draw) for draw in draws])
        condition = backbone.conditions(labels, lambda: task.prompts(labels))
        media = backbone.decode(sampler(noise, draws, condition, backbone.conditions.uncond(labels))).clamp(0, 1)
        judge = task.judge()
        assert judge is not None  # noqa: S101 (a task that shows prompts has one)
        right = judge.fits(media, labels)
    return [(_picture(picture), bool(fits)) for picture, fits in zip(media, right, strict=True)]


def _picture(media: torch.Tensor) -> str:
    """One picture [3, H, W] in [0, 1] as a data URI, in its own size: the page enlarges it."""
    file = io.BytesIO()
    Image.fromarray((media.permute(1, 2, 0) * 255).round().byte().numpy()).save(file, "png")
    return inline(file.getvalue(), "png")


def _credits(task: Task) -> str:
    return str(getattr(task, "credits", ""))
