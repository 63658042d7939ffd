"""The teacher of an embedded task: trained here, once, and cached."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.optimization import get_cosine_schedule_with_warmup
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from amd_plugin.cache import cached, root
from amd_plugin.config import ModelConfig, TeacherConfig
from amd_plugin.errors import OptionError, RunError
from amd_plugin.models.conditions import LabelConditions, prompts_of
from amd_plugin.models.embedded import teacher_state
from amd_plugin.models.embedded.networks import ClassConditional, build_network
from amd_plugin.models.family import Condition, Family
from amd_plugin.randomness import generator
from amd_plugin.schedule import NoiseSchedule
from amd_plugin.tasks import Task

# Updates of warm-up and share of updates with a falling learning rate, where it decays late.
WARM_UP, LATE = 100, 0.4
SAVE_EVERY = 100


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
    return {"task": task.made_of, "model": config.model_dump(include=keys), "seed": teacher_seed(config, seed)}


def state_file(config: ModelConfig, task: Task, seed: int) -> Path | None:
    """The file of an unfinished teacher, whatever its number of updates; None where it could not go on from there."""
    training = training_of(config)
    if training.decay != "late":
        return None
    about = teacher_made_of(config.model_copy(update={"teacher": training.model_copy(update={"steps": 1})}), task, seed)
    texts = config.negative_prompt, config.text_length  # of a pipeline, whose prompts they are
    digest = hashlib.sha256(json.dumps([about, texts, torch.__version__], sort_keys=True).encode()).hexdigest()[:16]
    return root() / f"unfinished-teacher-{task.name}-{digest}.safetensors"


def _learning_rate(optimizer: torch.optim.Optimizer, training: TeacherConfig, start: int) -> LambdaLR:
    if training.decay == "cosine":
        cosine: LambdaLR = get_cosine_schedule_with_warmup(optimizer, training.steps // 10, training.steps)
        return cosine
    for group in optimizer.param_groups:
        group["initial_lr"] = training.learning_rate
    late = LATE * training.steps
    return LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / WARM_UP, (training.steps - step) / late), start - 1)


def teacher_seed(config: ModelConfig, seed: int) -> int:
    """The seed of the teacher in a run of `seed`."""
    return seed if config.teacher is None or config.teacher.seed is None else config.teacher.seed


def train_teacher(
    network: nn.Module,
    family: Family | ClassConditional,
    schedule: NoiseSchedule,
    condition: Callable[[Tensor], Condition],
    task: Task,
    training: TeacherConfig,
    seed: int,
    text: Sequence[nn.Module] = (),
    state: Path | None = None,
    log: Callable[[int, float], None] = lambda step, loss: None,
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
        text: modules behind `condition` that are trained along.
        state: file from which an interrupted training goes on; used where the learning rate decays late.
        log: called with the number of updates done and the loss of the last one.

    Raises:
        RunError: where a loss or the weights are not finite.
    """
    draws = generator(seed, "teacher training")
    trained = nn.ModuleList((network, *text))
    average = AveragedModel(trained, multi_avg_fn=get_ema_multi_avg_fn(training.ema)) if training.ema else None
    optimizer = torch.optim.AdamW(trained.parameters(), lr=training.learning_rate, weight_decay=0.0)
    constant = int((1 - LATE) * training.steps) if training.decay == "late" else 0
    start = 0 if state is None else teacher_state.load(state, constant, trained, average, optimizer, draws)
    learning_rate = _learning_rate(optimizer, training, start)
    for step in range(start, training.steps):
        if state is not None and start < step <= constant and step % SAVE_EVERY == 0:
            teacher_state.save(state, step, trained, average, optimizer, draws)
        x0, labels = task.training_data(training.batch_size, draws)
        dropped = torch.rand(training.batch_size, generator=draws) < training.drop_label
        labels = torch.where(dropped, torch.full_like(labels, task.num_classes), labels)
        timestep = schedule.timestep(torch.rand(training.batch_size, generator=draws))
        noise = torch.randn(x0.shape, generator=draws)
        output = family.call(network, schedule.level(timestep).add_noise(x0, noise), timestep, condition(labels))
        loss = nn.functional.mse_loss(output, schedule.target(x0, noise, timestep))
        if not math.isfinite(loss.item()):
            raise RunError(f"the teacher's training failed: the loss of update {step + 1} is not finite; {_cause(x0)}")
        loss.backward()
        optimizer.step()
        learning_rate.step()
        optimizer.zero_grad()
        if average is not None:
            average.update_parameters(trained)
        log(step + 1, loss.item())
    if average is not None:
        trained.load_state_dict(average.module.state_dict())
    if any(not torch.isfinite(weights).all() for weights in trained.state_dict().values()):
        raise RunError(f"the teacher's training failed: its weights are not finite; {_cause(torch.zeros(1))}")


def _cause(x0: Tensor) -> str:
    """What to do about a training of which something is not finite, after a batch `x0` [B, ...]."""
    if bad := (~torch.isfinite(x0.flatten(1))).any(1).nonzero().flatten().tolist() if x0.dim() > 1 else []:
        return f"{len(bad)} of {len(x0)} samples of its data are not; mend the task's data"
    return "lower model.teacher.learning_rate"
