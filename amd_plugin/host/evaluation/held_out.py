"""Rewards that judge a run and that it was not trained on."""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from amd_plugin.config import RecipeConfig
from amd_plugin.rewards.reward_set import RewardSet
from amd_plugin.tasks import TASKS

log = logging.getLogger(__name__)


def held_out_names(config: RecipeConfig, measured: Collection[str]) -> list[str]:
    """Of the `measured` values, the held-out metrics that the recipe names, then the held-out rewards."""
    metrics = TASKS[config.data.task].metrics
    return [*(m for m in config.evaluate.held_out if m in measured), *(name for name in measured if name not in metrics)]


@torch.no_grad()
def mean_scores(rewards: RewardSet, task: Any, samples: Tensor, labels: Tensor, batch: int | None) -> dict[str, float]:
    """Mean of every reward over samples [B, ...] made for `labels` [B], decoded `batch` at a time.

    A reward that fails is warned of, and left out: a judge that is ill stops no training.
    """
    each: dict[str, list[Tensor]] = {}
    causes: dict[str, str] = {}
    if rewards:
        for part, asked in zip(samples.split(batch or len(labels)), labels.split(batch or len(labels)), strict=True):
            media = task.decode(part)
            # Tasks keep labels on the CPU; rewards find theirs where the media are.
            columns = {k: v.to(media.device) if isinstance(v, Tensor) else v for k, v in task.columns(asked).items()}
            scores = rewards(media, task.prompts(asked), **columns)
            causes |= scores.causes
            for name, values in scores.each.items():
                each.setdefault(name, []).append(values.cpu())
    for name, cause in causes.items():
        log.warning("held-out reward '%s' failed and is left out: %s", name, cause)
    means = {name: torch.cat(values).nanmean().item() for name, values in each.items()}
    return {name: value for name, value in means.items() if value == value}
