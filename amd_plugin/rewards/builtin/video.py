"""Videos by a reward for images: how good their frames are, and whether anything moves in them.

    score = reduce_t r(frame_t) - weight * max(0, 1 - motion / enough),
    motion = mean |low(frame_{t+1}) - low(frame_t)|

A still video can get a high score from a reward for images; here it loses `weight`, in units of that reward. Motion beyond
`enough` adds nothing, so shaking does not pay. `low` averages over a grid of at most 16 x 16 fields, so that noise, which
changes every pixel and moves nothing, hardly counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, ValidationError
from torch import Tensor

from amd_plugin.config import REWARD_CONTEXT, WrappedReward
from amd_plugin.errors import AmdPluginError, InputError, in_words
from amd_plugin.options import options_model
from amd_plugin.plugins import PluginManager, get_plugin_manager
from amd_plugin.rewards.protocol import present, score_frames, traits
from amd_plugin.rewards.scorer import as_scores, context_of

FIELDS = 16


class VideoReward:
    """A reward for images over the frames of a video, minus a penalty for standing still.

    Args:
        reward: entry of the wrapped reward: its ``name``, beside its options. It takes images, and no columns.
        reduce: way in which frame scores are combined: their ``mean``, or their ``min``, so that the worst frame decides.
        frames: number of frames scored, evenly spread; motion is measured over all frames.
        weight: penalty of a video without any motion; choose it about as large as the reward's own spread.
        enough: motion without penalty, as a mean absolute change per frame of pixels in [0, 1].
        batch_size: number of images scored at a time.
        task: running task, filled in by the host, for a wrapped reward that takes it.
        plugins: plugins of the run, filled in by the host, that provide the wrapped reward; by default those installed.

    Raises:
        InputError: if the wrapped reward is unknown, refuses its options, or takes videos only.
    """

    version = "1"

    def __init__(
        self,
        reward: WrappedReward,
        reduce: Literal["mean", "min"] = "mean",
        frames: Annotated[int, Field(ge=1)] = 8,
        weight: Annotated[float, Field(ge=0)] = 1.0,
        enough: Annotated[float, Field(gt=0, le=1)] = 0.01,
        batch_size: Annotated[int, Field(ge=1)] = 32,
        task: Any = None,
        plugins: PluginManager | None = None,
    ):
        self._reward = _build(reward, task, plugins or get_plugin_manager())
        self._reduce, self._frames, self._batch_size = reduce, frames, batch_size
        self._weight, self._enough = weight, enough
        wrapped = traits(self._reward)
        self._wanted, self.differentiable, self.unit = wrapped.media, wrapped.differentiable, wrapped.unit
        if self._wanted == "video":
            raise InputError(f"reward video: {reward['name']} takes videos already. Use it by itself")

    def __call__(self, media: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores [B] fp32 of media [B, 1 or 3, T, H, W] in [0, 1]; an image is a video of one frame, without motion."""
        each = score_frames(self._score, media, prompts, self._frames, self._batch_size)
        pooled = each.mean(1) if self._reduce == "mean" else each.amin(1)
        return pooled - self._weight * (1 - motion(media) / self._enough).clamp(min=0)

    def _score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        values = self._reward(present(images, self._wanted), list(prompts))
        scores = as_scores(values, len(images))
        # `as_scores` detaches: of a tensor the graph is kept.
        return (values if isinstance(values, Tensor) else scores).to(images.device, torch.float32)


def motion(media: Tensor) -> Tensor:
    """Mean absolute change per frame [B] of coarsened media [B, C, T, H, W]; 0 for one frame or for images [B, C, H, W]."""
    if media.dim() == 4 or media.shape[2] == 1:
        return torch.zeros(len(media), device=media.device)
    frames, height, width = media.shape[2:]
    low = torch.nn.functional.adaptive_avg_pool3d(media.float(), (frames, min(FIELDS, height), min(FIELDS, width)))
    return low.diff(dim=2).abs().flatten(1).mean(1)


def _build(entry: dict[str, Any], task: Any, plugins: PluginManager) -> Any:
    options = dict(entry)
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise InputError(f"reward video: its reward needs a name, got {entry}. Write `reward: {{name: clip, path: ...}}`")
    factory = plugins.reward_factory(name)
    try:
        checked = options_model(factory, ignore=REWARD_CONTEXT).model_validate(options)
        return factory(**{key: getattr(checked, key) for key in options}, **context_of(factory, task, plugins))
    except AmdPluginError:
        raise
    except ValidationError as error:
        messages = "; ".join(f"reward.{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise InputError(f"reward video: {messages}") from error
    except Exception as error:
        raise InputError(f"reward video: {name} could not be built: {in_words(error)}") from error
