"""Reward functions as TRL calls them, in both directions: theirs as rewards of ours, ours as functions for TRL's trainers.

TRL calls ``function(prompts=..., completions=..., **columns) -> list[float | None]``, None for "no answer"; the function may
be a coroutine function. `from_trl` makes a factory for the hook `distill_rewards` of one, `ToTRL` makes one of a reward.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import math
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from amd_plugin.errors import InputError
from amd_plugin.options import accepted
from amd_plugin.rewards.protocol import Traits, present, to_pil, traits

Completions = Literal["pil", "tensor"]


class FromTRL:
    """A reward that asks a TRL reward function.

    Args:
        function: gets prompts and completions, and of the batch's columns those it takes.
        completions: what these are: PIL images (lists of them for videos), or tensors [C, H, W] or [C, T, H, W].

    A column called `completions` is handed on in place of the media: functions that judge text, TRL's own among them, judge
    captions or other text that comes with a batch. Media that are a list already are handed on as they are.
    """

    differentiable, media, version, unit = Traits()

    def __init__(self, function: Callable[..., Any], completions: Completions = "pil"):
        if not callable(function):
            raise InputError(f"from_trl: needs a function f(prompts, completions, **columns), got {function!r}")
        self._function, self._completions = function, completions
        self._name = getattr(function, "__name__", type(function).__name__)
        self._takes = accepted(function)
        self._needs = _needs(function)

    def __call__(self, media: Tensor | Sequence[Any], prompts: Sequence[str], **columns: Any) -> Tensor:
        """[B] fp32; NaN where the function says None.

        Raises:
            ValueError: if the function needs a column the batch has not, or returns another number of values.
        """
        given: dict[str, Any] = {"trainer_state": None, "log_extra": _ignore, "log_metric": _ignore}
        if self._takes is None:
            given = {}
        given |= {name: value.tolist() if isinstance(value, Tensor) else value for name, value in columns.items()}
        given["prompts"] = list(prompts)
        if "completions" not in columns:
            shown = to_pil(media) if isinstance(media, Tensor) and self._completions == "pil" else media
            given["completions"] = list(shown)
        if self._takes is not None:
            given = {name: value for name, value in given.items() if name in self._takes}
        if missing := sorted(self._needs - given.keys()):
            have = ", ".join(sorted(columns)) or "none"
            raise ValueError(f"{self._name} needs the columns {', '.join(missing)}; the batch has {have}")
        values = _awaited(self._function(**given))
        if isinstance(values, str | bytes) or not hasattr(values, "__len__"):
            raise TypeError(f"{self._name} must return a list of numbers, got {type(values).__name__}")
        if len(values) != len(prompts):
            raise ValueError(f"{self._name} must return one value per prompt, {len(prompts)}, got {len(values)}")
        return torch.tensor([math.nan if value is None else float(value) for value in values])


def from_trl(function: Callable[..., Any]) -> Callable[..., FromTRL]:
    """A factory, as the hook `distill_rewards` returns them, of the reward that asks the TRL function `function`."""
    return functools.partial(FromTRL, function)


class ToTRL:
    """A reward as TRL's trainers call it; an object, so that it has a name in their logs and can be pickled if the reward can.

    Args:
        reward: one of ours, or any other that follows the protocol.
        name: in TRL's logs.
        device: where images are put before it is asked.
    """

    def __init__(self, reward: Callable[..., Any], name: str | None = None, device: str = "cpu"):
        self._reward, self._device = reward, torch.device(device)
        self._wanted, self._takes = traits(reward).media, accepted(reward)
        self.__name__: str = name or getattr(reward, "__name__", type(reward).__name__)

    @torch.no_grad()
    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        """One number per completion, None where the reward has none.

        Args:
            prompts: texts, or TRL's conversations, of which the last message's text is taken.
            completions: PIL images, tensors [C, H, W] or [C, T, H, W] in [0, 1], lists of PIL images for videos, or
                conversations whose last message holds images.
            columns: one value per completion each; numbers become tensors. Those the reward does not take are left out.
        """
        known = {name: v for name, v in columns.items() if self._takes is None or name in self._takes}
        media = [_tensor(_content(completion, "image")) for completion in completions]
        texts = [_content(prompt, "text") for prompt in prompts]
        answers: list[float | None] = [None] * len(media)
        for shape in dict.fromkeys(item.shape for item in media):  # a batch has one size, TRL's completions need not
            rows = [i for i, item in enumerate(media) if item.shape == shape]
            batch = torch.stack([media[i] for i in rows]).to(self._device)
            chosen = {name: _column(value, rows, len(media), self._device) for name, value in known.items()}
            values = self._reward(present(batch, self._wanted), [texts[i] for i in rows], **chosen)
            if len(values) != len(rows):
                raise ValueError(f"reward {self.__name__} must return one value per sample, {len(rows)}, got {len(values)}")
            for i, value in zip(rows, values, strict=True):
                answers[i] = None if value is None or not math.isfinite(float(value)) else float(value)
        return answers


def _needs(function: Callable[..., Any]) -> set[str]:
    """Names of the parameters without default."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(function).parameters.values()
    return {p.name for p in parameters if p.kind in named and p.default is p.empty}


def _awaited(result: Any) -> Any:
    """What a coroutine returns, run in a thread of its own as this one may have a running loop; anything else as it is."""
    if not inspect.isawaitable(result):
        return result

    async def wait(awaitable: Awaitable[Any]) -> Any:
        return await awaitable

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(lambda: asyncio.run(wait(result))).result()


def _ignore(*args: Any, **kwargs: Any) -> None:
    """What TRL's trainers log beside rewards."""


def _content(item: Any, kind: Literal["text", "image"]) -> Any:
    """Text or images of the last message of a conversation; what is none is returned as it is."""
    if not (isinstance(item, list) and item and isinstance(item[-1], dict)):
        return item
    content = item[-1].get("content", "")
    if isinstance(content, str):
        return content
    parts = [part[kind] for part in content if part.get("type") == kind]
    if kind == "text":
        return "\n".join(parts)
    return parts[0] if len(parts) == 1 else parts


def _tensor(item: Any) -> Tensor:
    """[3, H, W] of a PIL image, [3, T, H, W] of a list of them, a tensor as it is."""
    if isinstance(item, Tensor):
        return item
    if isinstance(item, list | tuple) and item:
        return torch.stack([_tensor(frame) for frame in item], 1)
    if not hasattr(item, "convert"):
        raise TypeError(f"completions must be PIL images, lists of them, or tensors, got {type(item).__name__}")
    return torch.from_numpy(np.array(item.convert("RGB"))).permute(2, 0, 1).float() / 255


def _column(values: Any, rows: list[int], count: int, device: torch.device) -> Any:
    """A column's `rows`; a tensor if it holds numbers. What is not one value per completion is handed on whole."""
    if not isinstance(values, list | tuple | Tensor) or len(values) != count:
        return values
    chosen = [values[i] for i in rows]
    numeric = all(isinstance(value, int | float | Tensor) for value in chosen)
    return torch.as_tensor([v.item() if isinstance(v, Tensor) else v for v in chosen], device=device) if numeric else chosen
