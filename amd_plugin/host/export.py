"""The finished student as a plain diffusers folder: weights, the few-step scheduler, a model card."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import diffusers
import torch
from jinja2 import Environment, PackageLoader
from torch import nn

import amd_plugin
from amd_plugin.recipe import Recipe

_TEMPLATES = Environment(loader=PackageLoader("amd_plugin", "templates"), autoescape=False)  # noqa: S701 (Markdown)


def export(
    path: Path,
    student: nn.Module,
    scheduler: Any,
    sample_shape: tuple[int, ...],
    recipe: Recipe,
    evaluation: dict[str, float],
) -> None:
    """Writes ``path/transformer``, ``path/scheduler`` and ``path/README.md``; replaces what was there."""
    draft = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(draft, ignore_errors=True)
    student.save_pretrained(draft / "transformer")
    scheduler.save_pretrained(draft / "scheduler")
    card = _TEMPLATES.get_template("model_card.md.j2").render(
        recipe=recipe,
        network=type(student).__name__,
        shape=", ".join(map(str, sample_shape)),
        scheduler=type(scheduler).__name__,
        evaluation=evaluation,
        versions={"amd-plugin": amd_plugin.__version__, "diffusers": diffusers.__version__, "torch": torch.__version__},
    )
    (draft / "README.md").write_text(card)
    shutil.rmtree(path, ignore_errors=True)
    draft.rename(path)
