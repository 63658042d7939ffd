"""Tiny diffusers pipelines for embedded tasks with prompts: built and trained here, then read like any other pipeline."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from amd_plugin.cache import cached
from amd_plugin.config import ModelConfig
from amd_plugin.errors import OptionError
from amd_plugin.models.embedded.teacher import state_file, teacher_made_of, train_teacher, training_of
from amd_plugin.models.family import Condition, Family, Size
from amd_plugin.models.quiet import quiet
from amd_plugin.schedule import NoiseSchedule
from amd_plugin.schedule.noise import flow_shift
from amd_plugin.tasks import Task
from amd_plugin.tasks.shipped import read, sha256, shipped


def pipeline_folder(config: ModelConfig, task: Task, seed: int, families: Mapping[str, type[Family]]) -> Path:
    """The folder of a diffusers pipeline, ``sdxl`` or ``wan``, whose network was trained on `task`; cached.

    Weights that come with the package are used where they were made of exactly these settings.
    """
    about = about_teacher(config, task, seed)
    weights = shipped(f"{task.name}_teacher", about)

    def make(folder: Path) -> None:
        if weights is None:
            pipeline, _ = made_pipeline(config, task, seed, families)
        else:
            pipeline = untrained(config, task, seed)
            load_trained(pipeline, families[type(pipeline).__name__].component, read(weights))
        for part in pipeline.components.values():
            # The first of several processes to arrive writes the cache; transformers would only let process 0 write.
            if hasattr(part, "should_save_on_this_rank"):
                part.should_save_on_this_rank = bool
        with quiet():
            pipeline.save_pretrained(folder)

    made_of = about if weights is None else {**about, "shipped": sha256(weights)}
    return cached(f"pipeline-{task.name}", made_of, make)


def about_teacher(config: ModelConfig, task: Task, seed: int) -> dict[str, Any]:
    """JSON-able description of everything that the trained pipeline depends on."""
    more = {"negative_prompt": config.negative_prompt, "text_length": config.text_length}
    return {**teacher_made_of(config, task, seed), **more}


def made_pipeline(
    config: ModelConfig, task: Task, seed: int, families: Mapping[str, type[Family]],
    log: Callable[[int, float], None] = lambda step, loss: None,
) -> tuple[Any, str]:  # fmt: skip
    """(pipeline, name of its network) trained on `task`; `log` as for `train_teacher`."""
    pipeline = untrained(config, task, seed)
    kind = families[type(pipeline).__name__]
    network = getattr(pipeline, kind.component)
    family = kind(dict(pipeline.config), dict(network.config))
    set_text_length(family, config)
    schedule, training = NoiseSchedule(pipeline.scheduler, flow_shift(pipeline.scheduler)), training_of(config)
    text = text_encoders(pipeline) if training.text == "trained" else []
    for encoder in text:
        encoder.requires_grad_(True)
    condition = _condition(pipeline, family, config, task, joint=bool(text))
    train_teacher(
        network, family, schedule, condition, task, training, seed, text, state_file(config, task, seed), log
    )  # fmt: skip
    return pipeline, kind.component


def trained_parts(pipeline: Any, component: str) -> dict[str, Tensor]:
    """The tensors of all parts that training changes, the network `component` and the text encoders, by part and name."""
    parts = {name: part for name, part in pipeline.components.items() if name == component or name.startswith("text_encoder")}
    return {f"{part}.{name}": value for part, module in parts.items() for name, value in module.state_dict().items()}


def load_trained(pipeline: Any, component: str, tensors: Mapping[str, Tensor]) -> None:
    """Loads what `trained_parts` returned into `pipeline`."""
    for part in dict.fromkeys(name.partition(".")[0] for name in trained_parts(pipeline, component)):
        own = {name.removeprefix(f"{part}."): value for name, value in tensors.items() if name.startswith(f"{part}.")}
        getattr(pipeline, part).load_state_dict(own)


def text_encoders(pipeline: Any) -> list[nn.Module]:
    """The text encoders of `pipeline`."""
    return [part for name, part in pipeline.components.items() if name.startswith("text_encoder") and part is not None]


def _condition(pipeline: Any, family: Family, config: ModelConfig, task: Task, *, joint: bool) -> Callable[[Tensor], Condition]:
    """Labels [B] -> conditions [B, ...]: each prompt embedded once, or with `joint`, embedded anew with gradients."""
    size = size_of(task)
    with torch.no_grad():
        uncond = family.encode_prompts(pipeline, [""], config.negative_prompt, size)
        if not joint:
            cond = family.encode_prompts(pipeline, task.prompts(torch.arange(task.num_classes)), None, size)
            table = {name: torch.cat((cond[name], uncond[name])) for name in cond}
            return lambda labels: {name: values[labels] for name, values in table.items()}

    def condition(labels: Tensor) -> Condition:
        dropped = labels == task.num_classes
        cond = family.encode_prompts(pipeline, task.prompts(labels.masked_fill(dropped, 0)), None, size)
        return {
            name: torch.where(dropped.reshape(-1, *[1] * (values.dim() - 1)), uncond[name], values)
            for name, values in cond.items()
        }  # fmt: skip

    return condition


def untrained(config: ModelConfig, task: Task, seed: int) -> Any:
    """The pipeline with an untrained network; its vocabulary is the words of the task's prompts."""
    with quiet():
        from amd_plugin.models.embedded.tiny import tiny_sdxl, tiny_wan

    words = sorted({word for prompt in task.prompts(torch.arange(task.num_classes)) for word in prompt.split()})
    shape = {"width": config.width, "depth": config.depth, "heads": config.heads, "seed": seed}
    if config.network == "wan":
        return tiny_wan(words, patch_size=config.patch_size, **shape)
    return tiny_sdxl(words, size=size_of(task).height, channels=task.sample_shape[0], **shape)


def size_of(task: Task) -> Size:
    """The size of a task's samples: its pipeline has one latent per pixel and frame."""
    *_, height, width = task.sample_shape
    return Size(height, width, task.sample_shape[1] if len(task.sample_shape) == 4 else 1)


def set_text_length(family: Family, config: ModelConfig) -> None:
    """Sets the number of tokens that `family` pads prompts to, where the recipe has one.

    Raises:
        OptionError: where the pipeline does not let it be chosen.
    """
    if config.text_length is not None:
        if family.text_length is None:
            raise OptionError(
                "text_length", f"a {family.pipeline} pads prompts to its tokenizer's length, got {config.text_length}"
            )
        family.text_length = config.text_length
