"""Mean scores of the rewards that judge a run and that it is not trained on."""

from __future__ import annotations

import logging
from collections.abc import Collection

import torch
from torch import Tensor

from amd_plugin.config import RecipeConfig
from amd_plugin.rewards.reward_set import RewardSet
from amd_plugin.tasks import TASKS, Task

log = logging.getLogger(__name__)


def held_out_names(config: RecipeConfig, measured: Collection[str]) -> list[str]:
    """Of the `measured` values, the held-out metrics that the recipe names, then the held-out rewards."""
    metrics = TASKS[config.data.task].metrics
    return [*(m for m in config.evaluate.held_out if m in measured), *(name for name in measured if name not in metrics)]


@torch.no_grad()
def mean_scores(rewards: RewardSet, task: Task, media: Tensor, labels: Tensor, batch_size: int | None) -> dict[str, float]:
    """Mean of every reward over `media` [B, ...] made for `labels` [B]: reward name -> mean over samples with a finite score.

    A reward that fails is left out with a warning: a failing judge does not stop training.

    Args:
        batch_size: samples scored at a time; all at once where None.
    """
    each: dict[str, list[Tensor]] = {}
    causes: dict[str, str] = {}
    size = batch_size or len(labels)
    for part, part_labels in zip(media.split(size), labels.split(size), strict=True) if rewards else ():
        # Tasks keep labels on the CPU; rewards get theirs on the device of the media.
        columns = {k: v.to(part.device) if isinstance(v, Tensor) else v for k, v in task.columns(part_labels).items()}
        scores = rewards(part, task.prompts(part_labels), **columns)
        causes |= scores.causes
        for name, values in scores.each.items():
            each.setdefault(name, []).append(values.cpu())
    for name, cause in causes.items():
        log.warning("held-out reward '%s' failed and is left out: %s", name, cause)
    means = {name: torch.cat(values).nanmean().item() for name, values in each.items()}
    return {name: value for name, value in means.items() if value == value}
