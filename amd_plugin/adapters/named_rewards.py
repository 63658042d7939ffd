"""A user's rewards as one reward, with the score of each by its name."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from amd_plugin.config import RewardConfig
from amd_plugin.errors import InputError
from amd_plugin.plugins import PluginManager, get_plugin_manager
from amd_plugin.rewards.reward_set import RewardSet

log = logging.getLogger(__name__)


class NamedRewards:
    """The weighted sum of rewards.

    Args:
        rewards: the rewards.

    Attributes:
        unit: significant difference of the sum, see `amd_plugin.rewards.protocol.Traits`; 0 if unknown.
        names: names of the rewards; a repeated one has its position as a suffix.
        weights: their weights, by name.
        each: scores [B] of every reward in the last call, by name, NaN where it failed.
    """

    def __init__(self, rewards: RewardSet):
        self._rewards, self.unit, self.names = rewards, rewards.unit, tuple(rewards.configs)
        self.weights = dict(rewards.weights)
        self.each: dict[str, Tensor] = {}

    def __call__(self, media: Tensor, prompts: Sequence[str]) -> Tensor:
        """Weighted sum [B]; NaN where a reward of a weight other than 0 failed."""
        scores = self._rewards(media, prompts)
        self.each = scores.each
        return scores.total

    def check_gradients(self, key: str) -> None:
        """Raises InputError, which names the option `key`, for a reward that is not differentiable here."""
        self._rewards.check_gradients(key)

    def with_gradient(self, media: Tensor, prompts: Sequence[str]) -> Tensor:
        """Weighted sum [B] with its graph; NaN where a reward of a weight other than 0 failed."""
        return self._rewards.with_gradient(media, prompts, {})


def make_reward(
    spec: Any, plugins: PluginManager | None = None, device: torch.device | None = None, where: str = "reward"
) -> Callable[..., Any] | None:  # fmt: skip
    """A reward from a user's configuration.

    Args:
        spec: a callable, a name, ``{name, weight, options...}``, a list of names and mappings, or None for no reward.
        plugins: manager in which names are looked up; None stands for all installed plugins.
        device: device on which named rewards are computed, as far as they do not name their own; the CPU by default.
        where: the option's name, for errors.

    Returns:
        The callable itself, or `NamedRewards`; None for None.

    Raises:
        InputError: for anything else, and for a reward that is unknown or cannot be built.
    """
    if spec is None:
        log.warning("no reward is given: every advantage is 0, and the samples are matched as without AMD")
    if spec is None or callable(spec):
        return spec  # type: ignore[no-any-return]
    return NamedRewards(RewardSet(_configs(spec, where), plugins or get_plugin_manager(), None, device=device))


def check_reward(spec: Any, plugins: PluginManager | None = None, where: str = "reward") -> None:
    """Checks a user's configuration of rewards without building them; arguments and errors as of `make_reward`."""
    if spec is not None and not callable(spec):
        for config in _configs(spec, where):
            (plugins or get_plugin_manager()).reward_factory(config.name)


def _configs(spec: Any, where: str) -> list[RewardConfig]:
    entries = [spec] if isinstance(spec, Mapping | str) else spec
    if not isinstance(entries, Sequence) or not entries:
        raise InputError(f"{where}: must be a name with options, a list of these, or a callable, got {spec!r}")
    configs = []
    for entry in entries:
        entry = {"name": entry} if isinstance(entry, str) else entry
        if not isinstance(entry, Mapping) or entry.get("on_error", "neutral") != "neutral":
            raise InputError(f"{where}: must be a mapping with a name, without on_error (always neutral here), got {entry!r}")
        try:
            configs.append(RewardConfig(**{**entry, "on_error": "neutral"}))
        except ValidationError as error:
            first = error.errors()[0]
            raise InputError(f"{where}.{'.'.join(map(str, first['loc']))}: {first['msg']}, got {first['input']!r}") from error
    return configs
