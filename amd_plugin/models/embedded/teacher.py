"""The teacher of an embedded task: trained here, once, and cached; and what a teacher itself makes in many steps."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.optimization import get_cosine_schedule_with_warmup
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from amd_plugin.cache import cached
from amd_plugin.config import ModelConfig, TeacherConfig
from amd_plugin.models.conditions import LabelConditions, prompts_of
from amd_plugin.models.embedded.networks import ClassConditional, build_network
from amd_plugin.models.family import Caller, Condition, guided
from amd_plugin.randomness import generator
from amd_plugin.schedule import NoiseSchedule, few_step_scheduler, sample

if TYPE_CHECKING:
    from amd_plugin.models.backbone import Backbone
    from amd_plugin.tasks import Task

SAMPLING_STEPS = 30


def teacher(config: ModelConfig, task: Task, seed: int) -> nn.Module:
    """The trained ``mlp`` or ``dit`` of `task` and `seed`, on the CPU, in eval mode; from the cache if it was made before."""
    network = build_network(config, task, seed)

    def make(folder: Path) -> None:
        conditions = LabelConditions(task.num_classes)
        schedule = NoiseSchedule(FlowMatchEulerDiscreteScheduler())
        condition = lambda labels: conditions(labels, prompts_of(task, labels))  # noqa: E731
        train_teacher(network, ClassConditional(), schedule, condition, task, config.teacher, seed)
        save_file(network.state_dict(), folder / "teacher.safetensors")

    folder = cached(f"teacher-{task.name}", made_of(config, task, seed), make)
    network.load_state_dict(load_file(folder / "teacher.safetensors"))
    return network.requires_grad_(False)


def teacher_samples(
    backbone: Backbone, config: ModelConfig, task: Task, seed: int, count: int, scale: float, batch: int | None = None
) -> tuple[Tensor, Tensor, dict[str, float]]:
    """What the teacher itself makes in many steps at guidance `scale`: samples [count, ...], labels, held-out metrics.

    Args:
        batch: samples made at a time; all at once where None.
    """
    labels = task.balanced_labels(count)
    conditions = backbone.conditions

    def make(folder: Path) -> None:
        draws = generator(seed, "teacher samples")
        noise = torch.randn((len(labels), *backbone.sample_shape), generator=draws)
        scheduler = FlowMatchEulerDiscreteScheduler()
        if backbone.pretrained is not None:
            scheduler = few_step_scheduler(SAMPLING_STEPS, backbone.pretrained.scheduler(), transition="ode")
        caller, parts = Caller(backbone.family, nullcontext), []
        device = next(backbone.network.parameters()).device
        for part, start in zip(labels.split(batch or len(labels)), noise.split(batch or len(labels)), strict=True):
            asked = part.to(device)
            cond, uncond = conditions(asked, prompts_of(task, part)), conditions.uncond(asked)
            predict = lambda x, t, c=cond, u=uncond: guided(caller, backbone.network, x, t, c, u, scale)  # noqa: E731
            parts.append(sample(predict, scheduler, SAMPLING_STEPS, start.to(device), draws).cpu())
        made = torch.cat(parts)
        save_file({"samples": made.contiguous()}, folder / "samples.safetensors")
        (folder / "evaluation.json").write_text(json.dumps(task.evaluate(made, labels)))

    more = {"count": count, "scale": scale, "batch": batch, "shape": backbone.sample_shape}
    if config.path is not None:
        more |= {"path": config.path, "revision": config.revision, "dtype": config.dtype}
    folder = cached(f"teacher-samples-{task.name}", {**made_of(config, task, seed), **more}, make)
    samples = load_file(folder / "samples.safetensors")["samples"]
    return samples, labels, json.loads((folder / "evaluation.json").read_text())


def made_of(config: ModelConfig, task: Task, seed: int) -> dict[str, Any]:
    """All that an embedded task's teacher depends on."""
    of_teacher = {"network", "width", "depth", "heads", "patch_size", "teacher"}
    return {"task": task.made_of, "model": config.model_dump(include=of_teacher), "seed": seed}


def train_teacher(
    network: nn.Module,
    family: Any,
    schedule: NoiseSchedule,
    condition: Callable[[Tensor], Condition],
    task: Task,
    how: TeacherConfig,
    seed: int,
) -> None:
    """Trains `network` to denoise the task's data, labels dropped for guidance, with a cosine learning rate.

    Args:
        condition: of labels [B]; the task's `num_classes` stands for "no label".
    """
    draws = generator(seed, "teacher training")
    optimizer = torch.optim.AdamW(network.parameters(), lr=how.learning_rate, weight_decay=0.0)
    learning_rate = get_cosine_schedule_with_warmup(optimizer, how.steps // 10, how.steps)
    for _ in range(how.steps):
        x0, labels = task.training_data(how.batch_size, draws)
        dropped = torch.rand(how.batch_size, generator=draws) < how.drop_label
        labels = torch.where(dropped, torch.full_like(labels, task.num_classes), labels)
        timestep = schedule.timestep(torch.rand(how.batch_size, generator=draws))
        noise = torch.randn(x0.shape, generator=draws)
        output = family.call(network, schedule.level(timestep).add_noise(x0, noise), timestep, condition(labels))
        loss = nn.functional.mse_loss(output, schedule.target(x0, noise, timestep))
        loss.backward()
        optimizer.step()
        learning_rate.step()
        optimizer.zero_grad()
