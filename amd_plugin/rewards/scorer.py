"""One reward, ready to use: built from its recipe entry, placed on its device, with its scores checked.

The training process and worker processes (`amd_plugin.rewards.pool`) share this code, so that scores are the same in both.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from amd_plugin.config import REWARD_CONTEXT, RewardConfig
from amd_plugin.errors import AmdPluginError, InputError, in_words
from amd_plugin.maths.advantage import scored
from amd_plugin.options import accepted
from amd_plugin.plugins import PluginManager
from amd_plugin.process_settings import as_they_were
from amd_plugin.rewards.protocol import present, traits


class Scorer:
    """Calls one reward.

    Args:
        config: entry of the reward in the recipe.
        factory: factory of the reward, as its plugin registered it.
        task: running task, for factories with a parameter ``task``.
        device: device of the student.
        plugins: plugins of the run, for factories with a parameter ``plugins``, such as those that wrap another reward.

    Attributes:
        device: device on which the reward scores.
        takes: names of the batch columns that the reward takes; None if it takes any.
        unit: significant difference of scores, see `Traits`.
        networks: torch modules that the reward is or holds.

    Raises:
        InputError: if the reward cannot be built or placed as the recipe says.
    """

    def __init__(
        self,
        config: RewardConfig,
        factory: Callable[..., Any],
        task: Any,
        device: torch.device,
        plugins: PluginManager | None = None,
    ):
        label = self._label = f"reward '{config.name}'"
        takes = accepted(factory) or set()
        try:
            with as_they_were(label):
                self._reward = factory(**context_of(factory, task, plugins), **config.factory_options(takes))
            self.takes = accepted(self._reward)
            _check_call(self._reward, label)
        except (AmdPluginError, KeyboardInterrupt):
            raise
        except BaseException as error:
            raise InputError(f"{label} could not be built: {in_words(error)}") from error
        own = config.host_keys & takes
        self.device = device if config.device == "auto" or "device" in own else torch.device(config.device)
        if self.device.type == "cuda" and (self.device.index or 0) >= torch.cuda.device_count():
            message = f"device '{config.device}': this machine has {torch.cuda.device_count()} CUDA devices"
            raise InputError(f"{label}: {message}. Set it to auto or cpu")
        own_traits = traits(self._reward)
        self._media, self.unit, self._differentiable = own_traits.media, own_traits.unit, own_traits.differentiable
        self.networks = _networks(self._reward)
        self._offload = config.offload and "offload" not in own
        if self._offload and not self.networks:
            message = "offload: it holds no torch module, itself or in an attribute, that could be moved"
            raise InputError(f"{label}: {message}. Set it to false")

    @torch.no_grad()
    def __call__(self, media: Tensor, prompts: Sequence[str], columns: dict[str, Any]) -> Tensor:
        """Scores [B] fp32 on media's device; NaN where the reward has none.

        Raises:
            Exception: whatever the reward raises; TypeError and ValueError for anything but one number per sample.
        """
        own_columns = self._own_columns(columns)
        if self._offload:
            self._move(self.device)
        try:
            # A reward that works in place must not change what the next one gets; this costs a copy on the same device only.
            copied = media.to(self.device, copy=True)
            with as_they_were(self._label):
                values = self._reward(present(copied, self._media), list(prompts), **own_columns)
            return as_scores(values, len(media)).to(media.device)
        finally:
            if self._offload:
                self._move(torch.device("cpu"))

    @property
    def no_gradient(self) -> str:
        """Why gradients do not reach the media; empty where they do."""
        if not self._differentiable:
            return "says of itself that it is not differentiable"
        return "is offloaded between calls, and its weights are needed in the backward pass" if self._offload else ""

    def with_gradient(self, media: Tensor, prompts: Sequence[str], columns: dict[str, Any]) -> Tensor:
        """Scores [B] fp32 of `media`, with their graph.

        Raises:
            Exception: as when called; TypeError also for scores that carry no gradient.
        """
        for network in self.networks:
            network.requires_grad_(False)
        with as_they_were(self._label):
            values = self._reward(present(media.to(self.device), self._media), list(prompts), **self._own_columns(columns))
        if not isinstance(values, Tensor) or not values.requires_grad:
            raise TypeError("must return a tensor through which gradients reach the media")
        as_scores(values, len(media))
        return values.float().to(media.device)

    def _own_columns(self, columns: dict[str, Any]) -> dict[str, Any]:
        own = columns if self.takes is None else {k: v for k, v in columns.items() if k in self.takes}
        return {name: v.to(self.device) if isinstance(v, Tensor) else v for name, v in own.items()}

    def _move(self, device: torch.device) -> None:
        for network in self.networks:
            network.to(device)


def _check_call(reward: Callable[..., Any], label: str) -> None:
    """Checks that `reward` can be called as rewards are, before a teacher is trained for it.

    Which columns a task has is known only from its batches, so what is required by name is left to the first call. So is a call
    that is not what its signature says: a module with hooks, or a wrapper of a function with another one.
    """
    plain_module = (
        isinstance(reward, nn.Module) and type(reward).__call__ is nn.Module.__call__ and not reward._forward_pre_hooks
    )
    call: Callable[..., Any] = getattr(reward, "forward", reward) if plain_module else reward
    try:
        signatures = [inspect.signature(call, follow_wrapped=follow) for follow in (False, True)]
    except (TypeError, ValueError):
        return  # of compiled code
    if (problem := _misfit(signatures[0])) and _misfit(signatures[1]):
        message = f"must be callable as reward(media, prompts, **columns), and its signature is {signatures[0]} ({problem})"
        raise InputError(f"{label}: {message}")


def _misfit(signature: inspect.Signature) -> str:
    """Why a call with media and prompts does not fit `signature`, whatever it requires by name; empty where it fits."""
    by_name = [p for index, p in enumerate(signature.parameters.values())
               if p.kind is p.KEYWORD_ONLY or (p.kind is p.POSITIONAL_OR_KEYWORD and index > 1)]  # fmt: skip
    try:
        signature.bind(None, [], **{p.name: None for p in by_name if p.default is p.empty})
    except TypeError as error:
        return str(error)
    return ""


def context_of(factory: Callable[..., Any], task: Any, plugins: PluginManager | None) -> dict[str, Any]:
    """The arguments of `factory` that come from the host: those of `REWARD_CONTEXT` that its signature names."""
    takes = accepted(factory) or ()
    return {name: value for name, value in zip(REWARD_CONTEXT, (task, plugins), strict=True) if name in takes}


def as_scores(values: Any, count: int) -> Tensor:
    """Scores [B] fp32 from a tensor, an array or a sequence in which None means "no score" and becomes NaN.

    So does what is infinite, or too large for a spread in fp32 (`scored`).

    Raises:
        TypeError: for anything else.
        ValueError: for another number of values than `count`.
    """
    if isinstance(values, Sequence) and not isinstance(values, str | bytes):
        words = [value for value in values if isinstance(value, str | bytes)]
        if words:
            raise TypeError(f"must return numbers, got {words[0]!r}")
        values = torch.tensor([torch.nan if value is None else value for value in values], dtype=torch.float64)
    elif isinstance(values, np.ndarray):
        values = torch.from_numpy(values)
    elif not isinstance(values, Tensor):
        raise TypeError(f"must return a tensor or a list of numbers, got {type(values).__name__}")
    scores: Tensor = values
    if scores.shape != (count,):
        raise ValueError(f"must return one value per sample, shape ({count},), got {tuple(scores.shape)}")
    if scores.is_complex():
        raise TypeError(f"must return real numbers, got {scores.dtype}")
    scores = scores.detach().float()
    return torch.where(scored(scores), scores, torch.nan)


def _networks(reward: Any, depth: int = 2) -> list[nn.Module]:
    """The torch modules that a reward is or holds, itself or in a reward that it wraps."""
    if isinstance(reward, nn.Module):
        return [reward]
    held = vars(reward).values() if depth and hasattr(reward, "__dict__") and not isinstance(reward, type) else ()
    return [network for value in held for network in _networks(value, depth - 1)]
