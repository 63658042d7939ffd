"""The teacher of an embedded task: trained here by flow matching, once, and cached."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.optimization import get_cosine_schedule_with_warmup
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from amd_plugin.cache import cached
from amd_plugin.config import ModelConfig
from amd_plugin.models.networks import ClassConditional, build_network
from amd_plugin.randomness import generator
from amd_plugin.schedule import NoiseSchedule, sample

if TYPE_CHECKING:
    from amd_plugin.tasks import Task

SAMPLING_STEPS = 30


def teacher(config: ModelConfig, task: Task, seed: int) -> nn.Module:
    """The trained teacher of `task` and `seed`, on the CPU, in eval mode; from the cache where it was made before."""
    network = build_network(config, task, seed)
    made_of = _made_of(config, task, seed)

    def make(folder: Path) -> None:
        _train(network, config, task, seed)
        save_file(network.state_dict(), folder / "teacher.safetensors")

    folder = cached(f"teacher-{task.name}", made_of, make)
    network.load_state_dict(load_file(folder / "teacher.safetensors"))
    return network.requires_grad_(False)


def teacher_samples(
    network: nn.Module, config: ModelConfig, task: Task, seed: int, count: int, scale: float
) -> tuple[Tensor, Tensor, dict[str, float]]:
    """What the teacher itself makes in many steps at guidance `scale`: samples [count, ...], labels, held-out metrics."""
    made_of = {**_made_of(config, task, seed), "count": count, "scale": scale}
    labels = task.balanced_labels(count)

    def make(folder: Path) -> None:
        call = ClassConditional(task.num_classes)
        draws = generator(seed, "teacher samples")
        noise = torch.randn((len(labels), *task.sample_shape), generator=draws)
        network_at = lambda x, t: call.guided(network, x, t, labels, scale)  # noqa: E731
        made = sample(network_at, FlowMatchEulerDiscreteScheduler(), SAMPLING_STEPS, noise, draws)
        save_file({"samples": made.contiguous()}, folder / "samples.safetensors")
        (folder / "evaluation.json").write_text(json.dumps(task.evaluate(made, labels)))

    folder = cached(f"teacher-samples-{task.name}", made_of, make)
    samples = load_file(folder / "samples.safetensors")["samples"]
    return samples, labels, json.loads((folder / "evaluation.json").read_text())


def _made_of(config: ModelConfig, task: Task, seed: int) -> dict[str, Any]:
    return {"task": task.made_of, "model": config.model_dump(exclude={"student_steps"}), "seed": seed}


def _train(network: nn.Module, config: ModelConfig, task: Task, seed: int) -> None:
    """Flow matching on the task's training data, labels dropped for guidance, cosine learning rate."""
    how = config.teacher
    schedule = NoiseSchedule(FlowMatchEulerDiscreteScheduler())
    call = ClassConditional(task.num_classes)
    draws = generator(seed, "teacher training")
    optimizer = torch.optim.AdamW(network.parameters(), lr=how.learning_rate, weight_decay=0.0)
    learning_rate = get_cosine_schedule_with_warmup(optimizer, how.steps // 10, how.steps)
    for _ in range(how.steps):
        x0, labels = task.training_data(how.batch_size, draws)
        dropped = torch.rand(how.batch_size, generator=draws) < how.drop_label
        labels = torch.where(dropped, call.uncond(labels), labels)
        timestep = schedule.timestep(torch.rand(how.batch_size, generator=draws))
        noise = torch.randn(x0.shape, generator=draws)
        output = call(network, schedule.level(timestep).add_noise(x0, noise), timestep, labels)
        loss = nn.functional.mse_loss(output, schedule.target(x0, noise, timestep))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        learning_rate.step()
