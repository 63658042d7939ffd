"""Tiny diffusers pipelines for embedded tasks with prompts: built and trained here, then read like any other pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from amd_plugin.cache import cached
from amd_plugin.config import ModelConfig
from amd_plugin.errors import OptionError
from amd_plugin.models.embedded.teacher import teacher_made_of, train_teacher, training_of
from amd_plugin.models.family import Condition, Family, Size
from amd_plugin.models.quiet import quiet
from amd_plugin.schedule import NoiseSchedule
from amd_plugin.schedule.noise import flow_shift
from amd_plugin.tasks import Task


def pipeline_folder(config: ModelConfig, task: Task, seed: int, families: Mapping[str, type[Family]]) -> Path:
    """The folder of a diffusers pipeline, ``sdxl`` or ``wan``, whose network was trained on `task`; cached."""

    def make(folder: Path) -> None:
        pipeline, size = untrained(config, task, seed), size_of(task)
        kind = families[type(pipeline).__name__]
        network = getattr(pipeline, kind.component)
        family = kind(dict(pipeline.config), dict(network.config))
        set_text_length(family, config)
        with torch.no_grad():
            prompts = task.prompts(torch.arange(task.num_classes))
            cond = family.encode_prompts(pipeline, prompts, None, size)
            uncond = family.encode_prompts(pipeline, [""], config.negative_prompt, size)
        table = {name: torch.cat((cond[name], uncond[name])) for name in cond}

        def condition(labels: Tensor) -> Condition:
            return {name: values[labels] for name, values in table.items()}

        schedule = NoiseSchedule(pipeline.scheduler, flow_shift(pipeline.scheduler))
        train_teacher(network, family, schedule, condition, task, training_of(config), seed)
        for part in pipeline.components.values():
            # The first of several processes to arrive writes the cache; transformers would only let process 0 write.
            if hasattr(part, "should_save_on_this_rank"):
                part.should_save_on_this_rank = bool
        with quiet():
            pipeline.save_pretrained(folder)

    more = {"negative_prompt": config.negative_prompt, "text_length": config.text_length}
    return cached(f"pipeline-{task.name}", {**teacher_made_of(config, task, seed), **more}, make)


def untrained(config: ModelConfig, task: Task, seed: int) -> Any:
    """The pipeline with an untrained network; its vocabulary is the words of the task's prompts."""
    with quiet():
        from amd_plugin.models.embedded.tiny import tiny_sdxl, tiny_wan

    words = sorted({word for prompt in task.prompts(torch.arange(task.num_classes)) for word in prompt.split()})
    shape = {"width": config.width, "depth": config.depth, "heads": config.heads, "seed": seed}
    if config.network == "wan":
        return tiny_wan(words, patch_size=config.patch_size, **shape)
    return tiny_sdxl(words, size=size_of(task).height, **shape)


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
