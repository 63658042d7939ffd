"""The alarm for hacked rewards on the samples of a host's own validation.

The training rewards and held-out ones, which are not trained on, score the same samples. The metrics are named as in the
reference host: ``evaluated_reward/NAME`` and ``evaluated_spread/NAME`` of the training rewards, ``held_out/NAME``,
``sensor/NAME``, the correlation of a training reward with the held-out ones within prompts, and ``hacking_alarm``.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from amd_plugin.adapters.bridge import HostBridge
from amd_plugin.adapters.named_rewards import NamedRewards, make_reward
from amd_plugin.adapters.sample_scores import SampleScores
from amd_plugin.errors import InputError
from amd_plugin.host.evaluation.hacking_alarm import HackingAlarm, warning
from amd_plugin.metrics import correlation_within
from amd_plugin.objectives.reward_statistics import group_ids
from amd_plugin.plugins import PluginManager

log = logging.getLogger(__name__)


class Validation:
    """Rewards on validations, and the alarm.

    Args:
        bridge: bridge of the run, with the training reward and the ranks.
        held_out: rewards that judge, see `make_reward`.
        plugins: manager in which names are looked up.
        device: device on which the rewards get media, and the named ones compute; None leaves it as it is.

    Raises:
        InputError: without a training reward, or for a held-out one that cannot be built.
    """

    def __init__(self, bridge: HostBridge, held_out: Any, plugins: PluginManager, device: torch.device | None = None):
        judges = make_reward(held_out, plugins, device, "held_out")
        if bridge.reward is None or judges is None:
            raise InputError("amd.held_out: judges a reward that is trained on, and there is none. Add amd.reward")
        self._bridge, self._device = bridge, device
        self._rewards, self._judges = SampleScores(bridge.reward), SampleScores(judges)
        weights = bridge.reward.weights if isinstance(bridge.reward, NamedRewards) else {"reward": 1.0}
        self._names, self._held_out = list(weights), list(self._judges.names or ["judge"])
        self.alarm = HackingAlarm(weights, dict.fromkeys(self._held_out, "up"))
        self._scores: list[Tensor] = []
        self._groups: list[Tensor] = []

    @torch.no_grad()
    def add(self, media: Tensor, prompts: Sequence[str]) -> None:
        """Scores samples of this rank: `media` [b, C, (T,) H, W] in [0, 1] for `prompts` [b]."""
        media = media if self._device is None else media.to(self._device)
        scores = [(part, part(media, prompts).cpu()) for part in (self._rewards, self._judges)]
        self._scores.append(torch.cat([row[:, 1:] if part.names else row for part, row in scores], 1))
        self._groups.append(group_ids(list(prompts), len(prompts)))

    def finish(self, step: int) -> dict[str, float]:
        """Metrics of all samples that were added on all ranks since the last call; every rank has to call it.

        Args:
            step: number of the host's iterations so far.
        """
        count = len(self._names) + len(self._held_out)
        scores = self._bridge.ranks.gathered(torch.cat(self._scores) if self._scores else torch.zeros(0, count)).double()
        groups = self._bridge.ranks.gathered(torch.cat(self._groups) if self._groups else torch.zeros(0, dtype=torch.long))
        self._scores, self._groups = [], []
        row = validation_metrics(scores, groups, self._names, self._held_out)
        before, finding = self.alarm.triggered, self.alarm.add({"step": float(step), **row})
        if finding is not None and not before:
            levers = self._bridge.objective.reward_levers
            log.warning("%s", warning(finding, [f"amd.{name} (now {value})" for name, value in levers.items() if value]))
        return {**row, "hacking_alarm": float(finding is not None)}

    def state_dict(self) -> list[dict[str, float]]:
        """The history of validations, JSON-able."""
        return self.alarm.state_dict()

    def load_state_dict(self, state: Sequence[Mapping[str, float]]) -> None:
        """Restores what `state_dict` gave."""
        self.alarm.load_state_dict(state)


def validation_metrics(scores: Tensor, groups: Tensor, rewards: Sequence[str], judges: Sequence[str]) -> dict[str, float]:
    """Metrics of `scores` [N, K + J] of K rewards and J judges on samples of prompts `groups` [N]; NaN ones are left out."""
    row: dict[str, float] = {}
    for name, column in zip(rewards, scores.unbind(1), strict=False):
        if len(values := column[column.isfinite()]) > 1:
            row |= {f"evaluated_reward/{name}": values.mean().item(), f"evaluated_spread/{name}": values.std().item()}
    verdicts = scores[:, len(rewards) :]
    row |= {f"held_out/{name}": verdict[verdict.isfinite()].mean().item()
            for name, verdict in zip(judges, verdicts.unbind(1), strict=True)}  # fmt: skip
    for name, values in zip(rewards, scores.unbind(1), strict=False):
        agreements = []
        for verdict in verdicts.unbind(1):
            both = values.isfinite() & verdict.isfinite()
            agreements.append(correlation_within(values[both], verdict[both], groups[both]) if both.any() else torch.nan)
        row[f"sensor/{name}"] = torch.tensor(agreements).nanmean().item()
    return {name: value for name, value in row.items() if value == value}
