"""A recipe's rewards as one number per sample, with a policy for those that fail."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from amd_plugin.config import RewardConfig
from amd_plugin.errors import AmdPluginError, InputError
from amd_plugin.plugins import PluginManager, accepted

log = logging.getLogger(__name__)


class Scores(NamedTuple):
    """What the rewards said about a batch.

    Attributes:
        total: weighted sum [B], fp32; NaN where any reward could not be computed.
        each: every reward's own values [B], by its name in the recipe.
        failure: why a reward with ``on_error: raise`` failed; empty otherwise. Its values are NaN.
    """

    total: Tensor
    each: dict[str, Tensor]
    failure: str


class RewardSet:
    """Calls every reward of a recipe and adds them up.

    Args:
        configs: the recipe's rewards.
        plugins: where they are looked up.
        task: handed to the factories that ask for it.

    Raises:
        InputError: for a reward that is unknown or cannot be built.
    """

    def __init__(self, configs: Sequence[RewardConfig], plugins: PluginManager, task: Any):
        self._rewards: dict[str, tuple[RewardConfig, Callable[..., Any], set[str] | None]] = {}
        for config in configs:
            factory = plugins.reward_factory(config.name)
            takes = accepted(factory)
            context = {"task": task} if takes is not None and "task" in takes else {}
            try:
                reward = factory(**context, **config.options)
                columns = accepted(reward)
            except AmdPluginError:
                raise
            except Exception as error:
                raise InputError(f"reward '{config.name}' could not be built: {type(error).__name__}: {error}") from error
            name = config.name if config.name not in self._rewards else f"{config.name}_{len(self._rewards)}"
            self._rewards[name] = (config, reward, columns)

    def __len__(self) -> int:
        """How many there are."""
        return len(self._rewards)

    @torch.no_grad()
    def __call__(self, media: Tensor, prompts: Sequence[str], **columns: Any) -> Scores:
        """Scores `media` [B, ...] made for `prompts`; `columns` go to the rewards that name them."""
        each: dict[str, Tensor] = {}
        failure = ""
        for name, (config, reward, takes) in self._rewards.items():
            known = columns if takes is None else {k: v for k, v in columns.items() if k in takes}
            try:
                each[name] = _as_scores(reward(media, prompts, **known), media)
            except Exception as error:
                each[name] = torch.full((len(media),), torch.nan, device=media.device)
                cause = f"reward '{name}': {type(error).__name__}: {error}"
                log.warning("%s", cause)
                if config.on_error == "raise":
                    failure = failure or cause
        total = sum(config.weight * each[name] for name, (config, *_) in self._rewards.items())
        return Scores(torch.as_tensor(total), each, failure)


def _as_scores(values: Any, media: Tensor) -> Tensor:
    """[B] fp32 on media's device from a tensor or a list with None for "could not be computed"."""
    if not isinstance(values, Tensor):
        values = torch.tensor([torch.nan if value is None else float(value) for value in values])
    if values.shape != media.shape[:1]:
        raise ValueError(f"must return one value per sample, shape ({len(media)},), got {tuple(values.shape)}")
    return values.to(media.device, torch.float32)
