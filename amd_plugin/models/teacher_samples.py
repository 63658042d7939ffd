"""Samples that a teacher itself makes, in many steps and with guidance."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file, save_file
from torch import Tensor

from amd_plugin.cache import cached
from amd_plugin.config import ModelConfig
from amd_plugin.models.backbone import Backbone
from amd_plugin.models.conditions import prompts_of
from amd_plugin.models.embedded.teacher import teacher_made_of
from amd_plugin.models.family import Caller, guided
from amd_plugin.randomness import generator
from amd_plugin.schedule import few_step_scheduler, sample
from amd_plugin.tasks import Task

SAMPLING_STEPS = 30


def teacher_scheduler(backbone: Backbone) -> Any:
    """The scheduler that a teacher is sampled with, in `SAMPLING_STEPS` deterministic steps."""
    if backbone.pretrained is None:
        return FlowMatchEulerDiscreteScheduler()
    own = backbone.pretrained.scheduler()
    # A schedule that shifts by the size of samples has no shift of its own, and the recipe names one.
    shift = backbone.shift if own.config.get("use_dynamic_shifting") else None
    return few_step_scheduler(SAMPLING_STEPS, own, transition="ode", shift=shift)


def teacher_samples(
    backbone: Backbone, config: ModelConfig, task: Task, seed: int, count: int, scale: float, batch_size: int | None = None,
    labels: Tensor | None = None, teacher: Any = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(samples [count, ...], labels [count]) of the teacher at guidance `scale`, on the CPU; cached.

    Args:
        backbone: the model of the teacher, where it is to be sampled.
        config: the recipe's model section.
        task: the recipe's task.
        seed: seed of the noise.
        count: number of samples, at most.
        scale: guidance scale; 1 samples without guidance.
        batch_size: samples made at a time; all at once where None.
        labels: labels [count] that are asked for; the task's `balanced_labels`, those of an evaluation, where None.
        teacher: teacher's role, where other roles share its network; the backbone's network where None.
    """
    labels = task.balanced_labels(count) if labels is None else labels
    draws = generator(seed, "teacher samples")

    def make(folder: Path) -> None:
        made = samples_of(backbone, task, labels, draws, scale, batch_size, slice(None), teacher)
        save_file({"samples": made.contiguous()}, folder / "samples.safetensors")

    sampling: dict[str, Any] = {
        "noise": seed,
        "count": count,
        "scale": scale,
        "batch": batch_size,
        "shape": backbone.sample_shape,
    }
    sampling["device"] = next(backbone.network.parameters()).device.type
    if config.path is not None:
        sampling |= {"of": config.model_dump(mode="json"), "files": _files(Path(config.path)), "prompts": task.prompts(labels)}
    folder = cached(f"teacher-samples-{task.name}", {**teacher_made_of(config, task, seed), **sampling}, make)
    return load_file(folder / "samples.safetensors")["samples"], labels


def _files(folder: Path) -> list[tuple[str, int, int]]:
    """(name, size, time of the last change) of each file of a model in a `folder`; empty for one of the hub."""
    files = sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else []
    return [(str(path.relative_to(folder)), (about := path.stat()).st_size, about.st_mtime_ns) for path in files]


def samples_of(
    backbone: Backbone, task: Task, labels: Tensor, draws: torch.Generator, scale: float, batch_size: int | None = None,
    rows: Tensor | slice = slice(None), teacher: Any = None,
) -> Tensor:  # fmt: skip
    """Samples [N, ...] of the teacher for the `rows` [N] of `labels` [B], on the CPU, from the noise that all B would have.

    Args:
        backbone, task, scale, batch_size, teacher: see `teacher_samples`.
        labels: the labels [B].
        draws: random numbers, on the CPU; the noise is drawn first.
        rows: which samples are made; all where not given.
    """
    noise = torch.randn((len(labels), *backbone.sample_shape), generator=draws)[rows]
    labels, scheduler = labels[rows], teacher_scheduler(backbone)
    size, device = batch_size or len(labels), next(backbone.network.parameters()).device
    caller, parts = Caller(backbone.family, nullcontext), []
    teacher = backbone.network if teacher is None else teacher
    for part, start in zip(labels.split(size), noise.split(size), strict=True):
        on_device = part.to(device)
        cond, uncond = backbone.conditions(on_device, prompts_of(task, part)), backbone.conditions.uncond(on_device)
        predict = lambda x, t, c=cond, u=uncond: guided(caller, teacher, x, t, c, u, scale)  # noqa: E731
        parts.append(sample(predict, scheduler, SAMPLING_STEPS, start.to(device), draws).cpu())
    return torch.cat(parts)
