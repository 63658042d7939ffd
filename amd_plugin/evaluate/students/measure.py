"""Measurements of samples, group by group and then of all samples together. Only numbers and features stay in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from amd_plugin import metrics as of
from amd_plugin.evaluate.students.features import VisionFeatures
from amd_plugin.evaluate.students.suite import Group
from amd_plugin.models.backbone import Backbone
from amd_plugin.randomness import generator
from amd_plugin.rewards.builtin.clip import ClipReward
from amd_plugin.rewards.reward_set import RewardSet
from amd_plugin.tasks import Task
from amd_plugin.tasks.judge import Judge

# A video counts as still if its adjacent frames differ by less than one level of 8-bit grey on average: nobody can see that.
STILL = 1 / 255


@dataclass
class MetricModels:
    """The models that an evaluation measures with.

    Attributes:
        rewards: ``reward`` and ``held_out`` -> training rewards and held-out rewards of the recipe.
        judge: judge of the task, for the task's own prompts or classes; None where the task has none.
        vision: vision model of the recipe's `evaluate.features`; None where it names none.
        alignment: CLIP-like model for the fit of samples to their prompts; None where there is none that was not trained on.
    """

    rewards: Mapping[str, RewardSet]
    judge: Judge | None = None
    vision: VisionFeatures | None = None
    alignment: ClipReward | None = None

    @property
    def features(self) -> str | None:
        """Name of the features that samples are compared in; None where nothing makes features."""
        return self.vision.name if self.vision else self.judge.name if self.judge else None


@dataclass
class Measurements:
    """Measurements of N samples in G groups.

    Attributes:
        each: metric -> values [N], one per sample.
        by_group: metric -> values [G], one per prompt or class.
        owners: group index [N] of each sample.
        features: features [N, D]; empty where nothing makes features.
        failures: messages of failed rewards, each once.
    """

    each: dict[str, Tensor]
    by_group: dict[str, Tensor]
    owners: Tensor
    features: Tensor
    failures: list[str] = field(default_factory=list)


@torch.no_grad()
def measure(
    groups: Iterator[Group], load: Callable[[Group], Tensor], task: Task, backbone: Backbone,
    device: torch.device, metric_models: MetricModels, batch: int | None,
    write_sample: Callable[[Group, int, Tensor], None] | None = None,
) -> Measurements:  # fmt: skip
    """Decodes and measures group after group.

    Args:
        groups: groups in the order of their measurements.
        load: function of a group that returns its samples [repeats, ...].
        task: task of the run.
        backbone: decoder of the samples.
        device: device of the metric models.
        metric_models: models to measure with.
        batch: number of samples decoded at a time; a whole group where None.
        write_sample: function ``(group, number, media [C, ...])`` that writes a sample; None writes none.
    """
    each: dict[str, list[Tensor]] = {}
    by_group: dict[str, list[float]] = {}
    owners, features, failures = [], [], dict[str, None]()
    for group in groups:
        of_group: dict[str, list[Tensor]] = {}
        for start, part in _batches(load(group), batch):
            media = backbone.decode(part.to(device))
            for name, values in _measure_media(media, group, task, metric_models, failures).items():
                of_group.setdefault(name, []).append(values.float().cpu())
            if write_sample is not None:
                for number, sample in enumerate(media, start):
                    write_sample(group, number, sample)
        whole = {name: torch.cat(values) for name, values in of_group.items()}
        pixels, group_features = whole.pop("pixels", None), whole.pop("features", None)
        for name, values in whole.items():
            each.setdefault(name, []).append(values)
        if group_features is not None:
            features.append(group_features)
            if len(group_features) > 1:
                by_group.setdefault("diversity", []).append(of.spread(group_features))
        if pixels is not None and len(pixels) > 1:
            by_group.setdefault("pixel_diversity", []).append(of.spread(pixels) / pixels.shape[1] ** 0.5)
        owners.append(torch.full((group.repeats,), group.index))
    return Measurements(
        {name: torch.cat(values) for name, values in each.items()},
        {name: torch.tensor(values) for name, values in by_group.items()},
        torch.cat(owners), torch.cat(features) if features else torch.empty(0, 0), list(failures),
    )  # fmt: skip


@torch.no_grad()
def real_features(
    task: Task, backbone: Backbone, count: int, metric_models: MetricModels, device: torch.device, seed: int, batch: int = 64
) -> Tensor:
    """Features [M, D] of real samples of the task. M is at most `count`: samples drawn twice count once."""
    draws, features = generator(seed, "evaluate", "real"), []
    for start in range(0, count, batch):
        samples = task.real_data(min(batch, count - start), draws, backbone.size and backbone.size[:2])[0]
        media = task.to_media(samples) if task.in_pixels else backbone.decode(samples.to(device))
        features.append(_features(media.to(device), metric_models)[0])
    distinct: Tensor = torch.unique(torch.cat(features), dim=0)
    return distinct


def _batches(samples: Tensor, batch: int | None) -> Iterator[tuple[int, Tensor]]:
    size = batch or len(samples)
    return ((start, samples[start : start + size]) for start in range(0, len(samples), size))


def _measure_media(
    media: Tensor, group: Group, task: Task, metric_models: MetricModels, failures: dict[str, None]
) -> dict[str, Tensor]:
    """Metric -> values [B] of samples of one group; further ``features`` [B, D] and ``pixels`` [B, P]."""
    count, prompts = len(media), [group.prompt] * len(media)
    columns: dict[str, Any] = {name: [value] * count for name, value in group.columns.items()}
    metrics: dict[str, Tensor] = {}
    if group.label is not None and task.num_classes:
        columns["labels"] = torch.full((count,), group.label, device=media.device)
    for kind, rewards in metric_models.rewards.items():
        if rewards:
            scores = rewards(media, prompts, **columns)
            metrics |= {f"{kind}/{name}": values for name, values in scores.each.items()}
            failures |= {f"reward '{name}': {cause}": None for name, cause in scores.causes.items()}
    frames = None
    if metric_models.features is not None:
        metrics["features"], frames = _features(media, metric_models)
    if metric_models.judge is not None and group.label is not None:
        metrics["accuracy"] = metric_models.judge.fits(media.cpu(), torch.full((count,), group.label))
    if metric_models.alignment is not None:
        metrics["alignment"] = metric_models.alignment(media, prompts)
    if media.dim() < 4:
        return metrics
    metrics |= {"saturation": of.saturation(media), "contrast": of.contrast(media), "pixels": media.flatten(1)}
    if media.dim() == 5 and media.shape[2] > 1:
        motion = of.motion(media)
        per_frame = media.float().transpose(1, 2).flatten(2) if frames is None else frames
        metrics |= {"motion": motion, "moving": (motion > STILL).float(), "consistency": of.consistency(per_frame)}
    return metrics


def _features(media: Tensor, metric_models: MetricModels) -> tuple[Tensor, Tensor | None]:
    """Features [B, D] of samples, and features [B, T, D] of their frames where a vision model makes them."""
    if metric_models.vision is not None:
        frames = metric_models.vision.frames(media)
        return frames.mean(1), frames
    assert metric_models.judge is not None  # noqa: S101 (for the type checker)
    return metric_models.judge.features(media.cpu()).float(), None
