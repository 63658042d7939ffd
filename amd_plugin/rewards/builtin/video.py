"""Videos by a reward for images: how good their frames are, and whether anything moves in them.

    score = reduce_t r(frame_t) - weight * max(0, 1 - motion / enough),
    motion = mean |low(frame_{t+1}) - low(frame_t)|

A video can please a reward for images by standing still; here it then pays `weight`, in units of that reward. Motion beyond
`enough` earns nothing, so that shaking earns nothing either, and `low` averages over a grid of at most 16 x 16 fields, so that
noise, which changes every pixel and moves nothing, hardly counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, ValidationError
from torch import Tensor

from amd_plugin.errors import AmdPluginError, InputError
from amd_plugin.options import accepted, options_model
from amd_plugin.plugins import get_plugin_manager
from amd_plugin.rewards.protocol import Traits, present, score_frames, traits

FIELDS = 16


class VideoReward:
    """A reward for images over frames of a video, less what standing still costs.

    Args:
        reward: its ``name``, of any installed plugin, beside its options. It takes images, and no columns but prompts.
        reduce: ``mean`` over the frames, or ``min``: the worst one decides.
        frames: that are looked at, evenly spread; motion is taken over all.
        weight: what a video without any motion pays; choose it about as large as the reward's own spread.
        enough: motion from which on nothing is paid, as a mean absolute change per frame of pixels in [0, 1].
        batch_size: images at a time.
        task: the running task, filled in by the host, for a reward that asks for it.

    Raises:
        InputError: if that reward is unknown, refuses its options, or takes videos only.
    """

    media, version = Traits(version="1")[1:3]

    def __init__(
        self,
        reward: dict[str, Any],
        reduce: Literal["mean", "min"] = "mean",
        frames: Annotated[int, Field(ge=1)] = 8,
        weight: Annotated[float, Field(ge=0)] = 1.0,
        enough: Annotated[float, Field(gt=0, le=1)] = 0.01,
        batch_size: Annotated[int, Field(ge=1)] = 32,
        task: Any = None,
    ):
        self._reward = _build(reward, task)
        self._reduce, self._frames, self._batch_size = reduce, frames, batch_size
        self._weight, self._enough = weight, enough
        found = traits(self._reward)
        self._wanted, self.differentiable, self.unit = found.media, found.differentiable, found.unit
        if self._wanted == "video":
            raise InputError(f"reward video: {reward['name']} takes videos, and needs no help with them. Use it itself")

    def __call__(self, media: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores [B] fp32 of media [B, 1 or 3, T, H, W] in [0, 1]; an image is a video of one frame, which stands still."""
        each = score_frames(self._score, media, prompts, self._frames, self._batch_size)
        pooled = each.mean(1) if self._reduce == "mean" else each.amin(1)
        return pooled - self._weight * (1 - motion(media) / self._enough).clamp(min=0)

    def _score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        values = self._reward(present(images, self._wanted), list(prompts))
        if not isinstance(values, Tensor):
            values = torch.tensor([torch.nan if value is None else float(value) for value in values])
        if values.shape != (len(images),):
            raise ValueError(f"the reward must return one value per frame, shape ({len(images)},), got {tuple(values.shape)}")
        return values.to(images.device, torch.float32)


def motion(media: Tensor) -> Tensor:
    """[B] mean absolute change per frame of coarse media [B, C, T, H, W]; 0 for one frame, or images [B, C, H, W]."""
    if media.dim() == 4 or media.shape[2] == 1:
        return torch.zeros(len(media), device=media.device)
    frames, height, width = media.shape[2:]
    low = torch.nn.functional.adaptive_avg_pool3d(media.float(), (frames, min(FIELDS, height), min(FIELDS, width)))
    return low.diff(dim=2).abs().flatten(1).mean(1)


def _build(given: dict[str, Any], task: Any) -> Any:
    options = dict(given)
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise InputError(f"reward video: its reward needs a name, got {given}. Write `reward: {{name: clip, path: ...}}`")
    factory = get_plugin_manager().reward_factory(name)
    try:
        checked = options_model(factory, ignore=("task",)).model_validate(options)
        context = {"task": task} if "task" in (accepted(factory) or ()) else {}
        return factory(**{key: getattr(checked, key) for key in options}, **context)
    except AmdPluginError:
        raise
    except ValidationError as error:
        found = "; ".join(f"reward.{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise InputError(f"reward video: {found}") from error
    except Exception as error:
        raise InputError(f"reward video: {name} could not be built: {type(error).__name__}: {error}") from error
