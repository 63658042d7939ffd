"""Samples of a student or its teacher for an evaluation, stored as latents: drawn once, group by group.

A sample's noise is keyed by its group and its number within the group. So neither batches nor interruptions change it, and
student and teacher start from the same noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from torch import Tensor

from amd_plugin.atomic import replaced_file, sweep
from amd_plugin.disk import regular
from amd_plugin.errors import InputError
from amd_plugin.evaluate.students.suite import Group, Suite
from amd_plugin.host.checkpoint import streamed
from amd_plugin.host.student.load import Student
from amd_plugin.models.conditions import LabelConditions, PromptConditions
from amd_plugin.models.family import Caller, Condition, guided
from amd_plugin.models.teacher_samples import SAMPLING_STEPS, teacher_scheduler
from amd_plugin.randomness import generator
from amd_plugin.schedule import sample

Sampler = Callable[[Tensor, list[torch.Generator], Condition, Condition], Tensor]


def student_sampler(student: Student, accelerator: Accelerator) -> Sampler:
    """A sampler equal to the exported student: its scheduler, its number of steps, no guidance."""
    caller, scheduler = Caller(student.backbone.family, accelerator.autocast), student.backbone.scheduler

    def draw(noise: Tensor, draws: list[torch.Generator], cond: Condition, uncond: Condition) -> Tensor:
        predict = lambda x, t: caller.call(student.role, x, t, cond)  # noqa: E731
        return sample(predict, scheduler, student.recipe.config.model.student_steps, noise, draws)

    return draw


def teacher_sampler(student: Student, accelerator: Accelerator) -> Sampler:
    """A sampler of the teacher, in many steps and at the guidance scale that the student was distilled from."""
    caller, scheduler = Caller(student.backbone.family, accelerator.autocast), teacher_scheduler(student.backbone)
    scale = student.recipe.objective.guidance_scale

    def draw(noise: Tensor, draws: list[torch.Generator], cond: Condition, uncond: Condition) -> Tensor:
        predict = lambda x, t: guided(caller, student.teacher, x, t, cond, uncond, scale)  # noqa: E731
        return sample(predict, scheduler, SAMPLING_STEPS, noise, draws)

    return draw


def prepare(student: Student, suite: Suite, device: torch.device) -> None:
    """Moves all networks to `device` and embeds all prompts; raises InputError for prompts that the student cannot take."""
    conditions = student.backbone.conditions
    if isinstance(conditions, LabelConditions) and suite.form != "task":
        raise InputError("--prompts: this run's student is asked for classes and reads no prompts. Leave --prompts out")
    if isinstance(conditions, PromptConditions):
        conditions.prepare([group.prompt for group in suite.groups], device)
    student.backbone.move_autoencoders(device)
    for role in (student.role, student.teacher):
        role.network.to(device).eval()


@torch.no_grad()
def draw_samples(
    folder: Path, student: Student, weights: str, suite: Suite, sampler: Sampler, device: torch.device, batch: int | None
) -> Iterator[Group]:
    """Draws the groups that `folder` does not have yet, and yields each group when its samples are there.

    Args:
        folder: folder of the samples, to which nobody else writes.
        student: student to be evaluated.
        weights: checksum of its weights; samples of others do not count.
        suite: prompts or classes.
        sampler: of the student, or of its teacher.
        device: device of the networks.
        batch: number of samples at a time; None for all of a group.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sweep(folder, alone=True)
    for group in suite.groups:
        path = folder / f"{group.index:05d}.safetensors"
        about = {"prompt": group.prompt, "label": str(group.label), "weights": weights}
        if not _has_samples(path, [group.repeats, *student.backbone.sample_shape], about):
            numbers = range(group.repeats)
            size = batch or group.repeats
            parts = [_draw_part(student, group, numbers[i : i + size], sampler, device) for i in range(0, group.repeats, size)]
            with replaced_file(path, durable=False) as draft:
                streamed.write(draft, {"samples": torch.cat(parts)}, about=about, finite=False)
        yield group


def load_samples(folder: Path, group: Group) -> Tensor:
    """The group's samples [repeats, ...] in the folder that `draw_samples` filled."""
    with safe_open(folder / f"{group.index:05d}.safetensors", "pt") as file:
        samples: Tensor = file.get_slice("samples")[: group.repeats]
    return samples


def _draw_part(student: Student, group: Group, numbers: range, sampler: Sampler, device: torch.device) -> Tensor:
    seed, backbone = student.recipe.config.train.seed, student.backbone

    def generators(purpose: str) -> list[torch.Generator]:
        return [generator(seed, "evaluate", group.index, number, purpose, device=device) for number in numbers]

    noise = torch.stack([torch.randn(backbone.sample_shape, generator=g, device=device) for g in generators("noise")])
    labels = torch.full((len(numbers),), group.label or 0, device=device)
    condition = backbone.conditions(labels, lambda: [group.prompt] * len(numbers))
    return sampler(noise, generators("rungs"), condition, backbone.conditions.uncond(labels)).float().cpu()


def _has_samples(path: Path, shape: Sequence[int], about: dict[str, str]) -> bool:
    """Whether a file has samples of at least `shape` [repeats, ...], drawn as `about` says."""
    with suppress(OSError, SafetensorError), safe_open(regular(path), "pt") as file:
        count, *of_one = file.get_slice("samples").get_shape()
        enough: bool = count >= shape[0] and of_one == [*shape[1:]]
        return enough and file.metadata() == about
    return False
