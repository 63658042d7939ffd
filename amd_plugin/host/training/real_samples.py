"""Real samples, for adversarial losses and for students that start from noised data: the task's, or the teacher's own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from amd_plugin.models.backbone import Backbone
from amd_plugin.models.teacher_samples import teacher_samples
from amd_plugin.recipe.loading import Recipe


class RealSamples:
    """Draws clean samples, as networks see them, with what was asked for.

    Args:
        recipe: says where they come from (`train.real`) and how many the teacher makes (`train.teacher_samples`).
        backbone: encodes pictures, or makes the samples.
        task: brings the data.
        device: where samples are wanted.
    """

    def __init__(self, recipe: Recipe, backbone: Backbone, task: Any, device: torch.device):
        self._task, self._backbone, self._device = task, backbone, device
        self._made: tuple[Tensor, Tensor] | None = None
        train = recipe.config.train
        if train.real == "teacher":
            count, scale = train.teacher_samples, recipe.objective.guidance_scale
            batch = recipe.config.evaluate.batch_size
            self._made = teacher_samples(backbone, recipe.config.model, task, train.seed, count, scale, batch)

    def draw(self, count: int, draws: torch.Generator, position: int) -> tuple[Tensor, Tensor]:
        """(samples [count, ...], labels [count]) of the `position`-th batch; the same for the same generator and position."""
        if self._made is not None:
            samples, labels = self._made
            index = torch.randint(len(labels), (count,), generator=draws, device=draws.device).cpu()
            return samples[index].to(self._device), labels[index].to(self._device)
        # Data are held on the CPU, and drawn there whatever the device of training.
        local = torch.Generator().manual_seed(draws.initial_seed())
        pixels = None if self._backbone.size is None else self._backbone.size[:2]
        samples, labels = self._task.training_data(count, local, position, pixels)
        samples, labels = samples.to(self._device), labels.to(self._device)
        if self._task.in_pixels and self._backbone.encode is not None:
            with torch.no_grad():
                samples = self._backbone.encode(samples)
        return samples, labels
