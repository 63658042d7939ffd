"""One reward, ready to be asked: built from its recipe entry, on its device, with its answers checked.

The same in the training process and in a worker process (`amd_plugin.rewards.pool`), so that scores do not depend on where.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from amd_plugin.config import RewardConfig
from amd_plugin.errors import AmdPluginError, InputError
from amd_plugin.options import accepted
from amd_plugin.rewards.protocol import present, traits


class Scorer:
    """Asks one reward.

    Args:
        config: its entry in the recipe.
        factory: what the plugin that provides it registered.
        task: handed to a factory that asks for it.
        device: where the student is.

    Attributes:
        takes: columns of a batch it asks for by name; None if it takes any.
        unit: the reward's, see `Traits`.

    Raises:
        InputError: if it cannot be built or placed as the recipe says.
    """

    def __init__(self, config: RewardConfig, factory: Callable[..., Any], task: Any, device: torch.device):
        where = f"reward '{config.name}'"
        takes = accepted(factory)
        context = {"task": task} if takes is not None and "task" in takes else {}
        try:
            self._reward = factory(**context, **config.factory_options(takes or ()))
            self.takes = accepted(self._reward)
        except AmdPluginError:
            raise
        except Exception as error:
            raise InputError(f"{where} could not be built: {type(error).__name__}: {error}") from error
        own = config.host_keys & (takes or set())
        self._device = device if config.device == "auto" or "device" in own else torch.device(config.device)
        if self._device.type == "cuda" and (self._device.index or 0) >= torch.cuda.device_count():
            what = f"device '{config.device}': this machine has {torch.cuda.device_count()} CUDA devices"
            raise InputError(f"{where}: {what}. Set it to auto or cpu")
        found = traits(self._reward)
        self._media, self.unit, self._differentiable = found.media, found.unit, found.differentiable
        self._networks = _networks(self._reward)
        self._offload = config.offload and "offload" not in own
        if self._offload and not self._networks:
            what = "offload: it holds no torch module, itself or in an attribute, that could be moved"
            raise InputError(f"{where}: {what}. Set it to false")

    @torch.no_grad()
    def __call__(self, media: Tensor, prompts: Sequence[str], columns: dict[str, Any]) -> Tensor:
        """Scores [B] fp32 on media's device; NaN where the reward has none.

        Raises:
            Exception: whatever the reward raises; TypeError and ValueError for an answer that is not a number per sample.
        """
        known = self._known(columns)
        if self._offload:
            self._move(self._device)
        try:
            # A reward that works in place must not change what the next one sees; it costs a copy only on the same device.
            shown = media.to(self._device, copy=True)
            values = self._reward(present(shown, self._media), list(prompts), **known)
            return as_scores(values, len(media)).to(media.device)
        finally:
            if self._offload:
                self._move(torch.device("cpu"))

    @property
    def no_gradient(self) -> str:
        """Why gradients do not reach the media, empty where they do."""
        if not self._differentiable:
            return "says of itself that it is not differentiable"
        return "is offloaded between calls, and its weights are needed in the backward pass" if self._offload else ""

    def with_gradient(self, media: Tensor, prompts: Sequence[str], columns: dict[str, Any]) -> Tensor:
        """Scores [B] fp32 of `media`, with their graph.

        Raises:
            Exception: as when called; TypeError also for scores that carry no gradient.
        """
        for network in self._networks:
            network.requires_grad_(False)
        values = self._reward(present(media.to(self._device), self._media), list(prompts), **self._known(columns))
        if not isinstance(values, Tensor) or not values.requires_grad:
            raise TypeError("must return a tensor through which gradients reach the media")
        as_scores(values, len(media))
        return values.float().to(media.device)

    def _known(self, columns: dict[str, Any]) -> dict[str, Any]:
        known = columns if self.takes is None else {k: v for k, v in columns.items() if k in self.takes}
        return {name: v.to(self._device) if isinstance(v, Tensor) else v for name, v in known.items()}

    def _move(self, device: torch.device) -> None:
        for network in self._networks:
            network.to(device)


def as_scores(values: Any, count: int) -> Tensor:
    """[B] fp32 from a tensor, an array or a sequence with None for "could not be computed".

    Raises:
        TypeError, ValueError: for anything else, or another number of them than `count`.
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
    if values.shape != (count,):
        raise ValueError(f"must return one value per sample, shape ({count},), got {tuple(values.shape)}")
    if values.is_complex():
        raise TypeError(f"must return real numbers, got {values.dtype}")
    return values.detach().float()


def _networks(reward: Any, depth: int = 2) -> list[nn.Module]:
    """The torch modules a reward is or holds, itself or in a reward that it holds."""
    if isinstance(reward, nn.Module):
        return [reward]
    held = vars(reward).values() if depth and hasattr(reward, "__dict__") and not isinstance(reward, type) else ()
    return [network for value in held for network in _networks(value, depth - 1)]
