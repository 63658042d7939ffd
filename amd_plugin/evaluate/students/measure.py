"""What is measured of every sample as it passes by, and then of all of them together. Only numbers and features are kept."""

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

# A mean change of adjacent frames by less than one level of 8-bit grey cannot be seen: such a video stands still.
STILL = 1 / 255


@dataclass
class Instruments:
    """What measures.

    Attributes:
        rewards: ``reward`` and ``held_out`` -> what the recipe names under each.
        judge: the task's own, used where the task's own prompts are asked for.
        vision: the model the recipe names.
        alignment: a CLIP-like model to tell how well samples fit their prompts.
    """

    rewards: Mapping[str, RewardSet]
    judge: Judge | None = None
    vision: VisionFeatures | None = None
    alignment: ClipReward | None = None


@dataclass
class Measured:
    """Numbers of a set of samples.

    Attributes:
        each: metric -> [N], of every sample.
        by_group: metric -> [G], of every prompt.
        owners: [N], which group a sample belongs to.
        features: [N, D]; empty where nothing makes any.
        failures: what rewards could not do, each once.
    """

    each: dict[str, Tensor]
    by_group: dict[str, Tensor]
    owners: Tensor
    features: Tensor
    failures: list[str] = field(default_factory=list)


@torch.no_grad()
def measure(
    groups: Iterator[Group], load: Callable[[Group], Tensor], task: Task, backbone: Backbone,
    device: torch.device, tools: Instruments, batch: int | None, keep: Callable[[Group, int, Tensor], None] | None = None,
) -> Measured:  # fmt: skip
    """Decodes group after group and measures it.

    Args:
        load: the group's samples [repeats, ...].
        batch: samples decoded at a time; a whole group where None.
        keep: ``(group, number, media [C, ...])`` of every sample, to write it.
    """
    each: dict[str, list[Tensor]] = {}
    by_group: dict[str, list[float]] = {}
    owners, features, failures = [], [], dict[str, None]()
    for group in groups:
        here: dict[str, list[Tensor]] = {}
        for start, part in _batches(load(group), batch):
            media = backbone.decode(part.to(device))
            for name, values in _of_samples(media, group, task, tools, failures).items():
                here.setdefault(name, []).append(values.float().cpu())
            for number, sample in enumerate(media if keep else (), start):
                keep(group, number, sample)  # type: ignore[misc]
        joined = {name: torch.cat(values) for name, values in here.items()}
        pixels, found = joined.pop("pixels", None), joined.pop("features", None)
        for name, values in joined.items():
            each.setdefault(name, []).append(values)
        if found is not None:
            features.append(found)
            if len(found) > 1:
                by_group.setdefault("diversity", []).append(of.spread(found))
        if pixels is not None and len(pixels) > 1:
            by_group.setdefault("pixel_diversity", []).append(of.spread(pixels) / pixels.shape[1] ** 0.5)
        owners.append(torch.full((group.repeats,), group.index))
    return Measured(
        {name: torch.cat(values) for name, values in each.items()},
        {name: torch.tensor(values) for name, values in by_group.items()},
        torch.cat(owners), torch.cat(features) if features else torch.empty(0, 0), list(failures),
    )  # fmt: skip


@torch.no_grad()
def real_features(
    task: Task, backbone: Backbone, count: int, tools: Instruments, device: torch.device, seed: int, batch: int = 64
) -> Tensor:
    """Features [M, D] of the task's real samples, M being `count` at most: what was drawn twice is left out."""
    draws, found = generator(seed, "evaluate", "real"), []
    for start in range(0, count, batch):
        samples = task.real_data(min(batch, count - start), draws, backbone.size and backbone.size[:2])[0]
        media = task.to_media(samples) if task.in_pixels else backbone.decode(samples.to(device))
        found.append(_features(media.to(device), tools)[0])
    return torch.cat(found).unique(dim=0)


def _batches(samples: Tensor, batch: int | None) -> Iterator[tuple[int, Tensor]]:
    size = batch or len(samples)
    return ((start, samples[start : start + size]) for start in range(0, len(samples), size))


def _of_samples(
    media: Tensor, group: Group, task: Task, tools: Instruments, failures: dict[str, None]
) -> dict[str, Tensor]:  # fmt: skip
    """Every metric of samples of one group, [B]; beside them ``features`` [B, D] and ``pixels`` [B, P]."""
    count, prompts = len(media), [group.prompt] * len(media)
    columns: dict[str, Any] = {name: [value] * count for name, value in group.columns.items()}
    found: dict[str, Tensor] = {}
    if group.label is not None and task.num_classes:
        columns["labels"] = torch.full((count,), group.label, device=media.device)
    for kind, rewards in tools.rewards.items():
        if rewards:
            scores = rewards(media, prompts, **columns)
            found |= {f"{kind}/{name}": values for name, values in scores.each.items()}
            failures |= {f"reward '{name}': {cause}": None for name, cause in scores.causes.items()}
    frames = None
    if tools.judge is not None or tools.vision is not None:
        found["features"], frames = _features(media, tools)
    if tools.judge is not None and group.label is not None:
        found["accuracy"] = tools.judge.fits(media.cpu(), torch.full((count,), group.label))
    if tools.alignment is not None:
        found["alignment"] = tools.alignment(media, prompts)
    if media.dim() < 4:
        return found
    found |= {"saturation": of.saturation(media), "contrast": of.contrast(media), "pixels": media.flatten(1)}
    if media.dim() == 5 and media.shape[2] > 1:
        moved = of.motion(media)
        seen = media.float().transpose(1, 2).flatten(2) if frames is None else frames
        found |= {"motion": moved, "moving": (moved > STILL).float(), "consistency": of.consistency(seen)}
    return found


def _features(media: Tensor, tools: Instruments) -> tuple[Tensor, Tensor | None]:
    """Features [B, D] of samples, and those of their frames [B, T, D] where a model looks at frames."""
    if tools.vision is not None:
        frames = tools.vision.frames(media)
        return frames.mean(1), frames
    assert tools.judge is not None  # noqa: S101 (for the type checker)
    return tools.judge.features(media.cpu()).float(), None
