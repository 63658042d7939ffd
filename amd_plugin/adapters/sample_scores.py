"""Scores of student samples in somebody else's trainer: a reward that fails gives NaN and never ends a turn.

So every rank goes on to the same collective calls, whatever its reward did.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from amd_plugin.adapters.named_rewards import NamedRewards
from amd_plugin.errors import InputError, RunError
from amd_plugin.rewards.gradient import linearised
from amd_plugin.rewards.protocol import present, traits
from amd_plugin.rewards.scorer import as_scores

log = logging.getLogger(__name__)


class SampleScores:
    """Scores samples by a reward of their decoded form.

    Args:
        reward: function of (media, prompts) to scores [B].
        media: function of samples [B, ...] to media; None for samples that are media.

    Attributes:
        names: names of the parts of the reward, see `NamedRewards`; empty for a function.
    """

    def __init__(self, reward: Callable[..., Any], media: Callable[[Tensor], Tensor] | None = None):
        self._reward, self._media, self._traits = reward, media or (lambda samples: samples), traits(reward)
        self.names: Sequence[str] = reward.names if isinstance(reward, NamedRewards) else ()
        self._said_promptless = False

    def check_gradients(self, key: str) -> None:
        """Raises InputError, which names the option `key`, if the reward has no gradient."""
        if isinstance(self._reward, NamedRewards):
            self._reward.check_gradients(key)
        elif not self._traits.differentiable:
            message = f"needs a reward with gradients, and {self._reward!r} has no attribute differentiable = True"
            raise InputError(f"{key}: {message}. Leave it out, or use such a reward")

    @torch.no_grad()
    def __call__(self, x0: Tensor, prompts: Sequence[str] | None) -> Tensor:
        """The reward and its parts by name [B, 1 + K] in fp32; NaN for failed ones.

        Args:
            x0: student samples [B, ...].
            prompts: prompts [B]; None passes empty ones.
        """
        if prompts is None and not self._said_promptless:
            log.warning("this batch has no prompts: the reward gets empty ones, and must not be one that reads prompts")
            self._said_promptless = True
        scores = torch.full((len(x0), 1 + len(self.names)), torch.nan, dtype=torch.float32, device=x0.device)
        try:
            media = self._media(x0.clone())  # a reward may change what it gets, which may be the samples themselves
            values = self._reward(present(media, self._traits.media), _texts(prompts, len(x0)))
            scores[:, 0] = as_scores(values, len(x0)).detach().to(scores)
            for column, name in enumerate(self.names, 1):
                scores[:, column] = self._reward.each[name].to(scores)  # type: ignore[attr-defined]
        except Exception as error:
            log.warning("a reward failed, and these samples have no score: %s: %s", type(error).__name__, error)
            scores.fill_(torch.nan)
        return scores

    def with_gradient(self, x0: Tensor, prompts: Sequence[str] | None) -> Tensor:
        """Rewards [B] of `x0` [B, ...] with their gradient with respect to it, for `Signals.reward`; NaN for failed ones.

        `media` must be differentiable. Arguments are those of `__call__`.

        Raises:
            RunError: if what it decodes has no graph.
        """
        score: Callable[..., Any] = self._reward.with_gradient if isinstance(self._reward, NamedRewards) else self._reward

        def scored(samples: Tensor) -> Tensor:
            media = self._media(samples)
            if not media.requires_grad:
                raise RunError(
                    "amd: this host decodes samples without a graph, which gradients of rewards need. Leave them out"
                )
            rewards: Tensor = score(present(media, self._traits.media), _texts(prompts, len(x0)))
            return rewards

        try:
            return linearised(scored, x0)
        except RunError:
            raise
        except Exception as error:
            log.warning("no gradient of the reward for these samples: %s: %s", type(error).__name__, error)
            return torch.full((len(x0),), torch.nan, device=x0.device)


def reward_metrics(scores: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    """Means over those samples on which a reward did not fail, of `scores` [B, 1 + K]: the reward, and K of `names`."""
    finite = torch.isfinite(scores)
    means = torch.where(finite, scores, 0.0).sum(0) / finite.sum(0).clamp(min=1)
    parts = {f"reward/{name}": means[column] for column, name in enumerate(names, 1)}
    return {"reward": means[0], "failed_rewards": 1 - finite[:, 0].float().mean(), **parts}


def _texts(prompts: Sequence[str] | None, count: int) -> list[str]:
    return [""] * count if prompts is None else list(prompts)
