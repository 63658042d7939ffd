"""Real samples, for adversarial losses and for rollouts that start from noised data: the task's own or the teacher's."""

from __future__ import annotations

import torch
from torch import Tensor

from amd_plugin.models.backbone import Backbone
from amd_plugin.models.roles import Role
from amd_plugin.models.teacher_samples import teacher_samples
from amd_plugin.randomness import generator
from amd_plugin.recipe.loading import Recipe
from amd_plugin.tasks import Task


class RealSamples:
    """Draws clean samples in the networks' space, with their labels.

    Args:
        recipe: the recipe with the source of samples (`train.real`) and the number the teacher makes (`train.teacher_samples`).
        backbone: the model that encodes pictures or makes the samples.
        task: the task that provides data.
        teacher: the teacher, which may share its network with other roles.
        part: the number of pictures that are encoded at a time.
        device: the device of the samples.
    """

    def __init__(self, recipe: Recipe, backbone: Backbone, task: Task, teacher: Role, part: int, device: torch.device):
        self._task, self._backbone, self._part, self._device = task, backbone, part, device
        self._from_teacher: tuple[Tensor, Tensor] | None = None
        train = recipe.config.train
        if train.real == "teacher":
            count, scale = train.teacher_samples, recipe.objective.guidance_scale
            batch = recipe.config.evaluate.batch_size
            # The balanced labels of prompts are those of an evaluation, held out perhaps.
            labels = (
                None if task.num_classes else task.draw_labels(0, count, generator(train.seed, "teacher samples", "labels"))
            )
            self._from_teacher = teacher_samples(
                backbone, recipe.config.model, task, train.seed, count, scale, batch, labels, teacher
            )

    def draw(
        self, count: int, draws: torch.Generator, position: int, rows: slice = slice(None)
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """(samples of `rows`, labels [count]) of a batch; the same for the same generator and position.

        Args:
            count: the number of samples.
            draws: the generator of a random choice.
            position: the number of batches before this one, for data that are read in order.
            rows: the rows whose samples are wanted; no others are encoded.
        """
        if self._from_teacher is not None:
            samples, labels = self._from_teacher
            index = torch.randint(len(labels), (count,), generator=draws, device=draws.device).cpu()
            return samples[index[rows]].to(self._device), labels[index]
        # Data live on the CPU and are drawn there, whatever the device of training.
        local = torch.Generator().manual_seed(draws.initial_seed())
        pixels = None if self._backbone.size is None else self._backbone.size[:2]
        samples, labels = self._task.training_data(count, local, position, pixels)
        samples = samples[rows]
        if not self._task.in_pixels or self._backbone.encode is None:
            return samples.to(self._device), labels
        with torch.no_grad():
            return torch.cat([self._backbone.encode(part.to(self._device)) for part in samples.split(self._part)]), labels
