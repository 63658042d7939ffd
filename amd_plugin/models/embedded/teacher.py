"""The teacher of an embedded task: trained here, once, and cached."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.optimization import get_cosine_schedule_with_warmup
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from amd_plugin.cache import cached
from amd_plugin.config import ModelConfig, TeacherConfig
from amd_plugin.errors import OptionError
from amd_plugin.models.conditions import LabelConditions, prompts_of
from amd_plugin.models.embedded.networks import ClassConditional, build_network
from amd_plugin.models.family import Condition, Family
from amd_plugin.randomness import generator
from amd_plugin.schedule import NoiseSchedule
from amd_plugin.tasks import Task


def trained_teacher(config: ModelConfig, task: Task, seed: int) -> nn.Module:
    """The trained ``mlp`` or ``dit`` of `task` and `seed`, frozen, on the CPU, in eval mode; trained once, then cached.

    Raises:
        OptionError: where the network does not fit the task's samples.
    """
    network = build_network(config, task, seed)

    def make(folder: Path) -> None:
        conditions = LabelConditions(task.num_classes)
        schedule = NoiseSchedule(FlowMatchEulerDiscreteScheduler())
        condition = lambda labels: conditions(labels, prompts_of(task, labels))  # noqa: E731
        train_teacher(network, ClassConditional(), schedule, condition, task, training_of(config), seed)
        save_file(network.state_dict(), folder / "teacher.safetensors")

    folder = cached(f"teacher-{task.name}", teacher_made_of(config, task, seed), make)
    network.load_state_dict(load_file(folder / "teacher.safetensors"))
    return network.requires_grad_(False)


def training_of(config: ModelConfig) -> TeacherConfig:
    """The section ``model.teacher``.

    Raises:
        OptionError: where the recipe has none.
    """
    if config.teacher is None:
        raise OptionError("teacher", "required for a network that is made here, but not given")
    return config.teacher


def teacher_made_of(config: ModelConfig, task: Task, seed: int) -> dict[str, Any]:
    """JSON-able description of everything that an embedded task's teacher depends on, for caches."""
    keys = {"network", "width", "depth", "heads", "patch_size", "teacher"}
    return {"task": task.made_of, "model": config.model_dump(include=keys), "seed": seed}


def train_teacher(
    network: nn.Module,
    family: Family | ClassConditional,
    schedule: NoiseSchedule,
    condition: Callable[[Tensor], Condition],
    task: Task,
    training: TeacherConfig,
    seed: int,
) -> None:
    """Trains `network` in place to denoise the task's data; some labels are dropped, for guidance.

    Args:
        network: the network, of the family `family`.
        family: calling convention of the network.
        schedule: noise schedule.
        condition: labels [B] -> condition [B, ...]; the task's `num_classes` stands for "no label".
        task: source of the training data.
        training: steps, batch size, learning rate and share of dropped labels.
        seed: seed of the draws.
    """
    draws = generator(seed, "teacher training")
    optimizer = torch.optim.AdamW(network.parameters(), lr=training.learning_rate, weight_decay=0.0)
    learning_rate = get_cosine_schedule_with_warmup(optimizer, training.steps // 10, training.steps)
    for _ in range(training.steps):
        x0, labels = task.training_data(training.batch_size, draws)
        dropped = torch.rand(training.batch_size, generator=draws) < training.drop_label
        labels = torch.where(dropped, torch.full_like(labels, task.num_classes), labels)
        timestep = schedule.timestep(torch.rand(training.batch_size, generator=draws))
        noise = torch.randn(x0.shape, generator=draws)
        output = family.call(network, schedule.level(timestep).add_noise(x0, noise), timestep, condition(labels))
        loss = nn.functional.mse_loss(output, schedule.target(x0, noise, timestep))
        loss.backward()
        optimizer.step()
        learning_rate.step()
        optimizer.zero_grad()
