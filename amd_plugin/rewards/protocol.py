"""What a reward is, and the optional attributes that describe it.

A reward is a callable ``reward(media, prompts, **columns) -> [B]``: higher is better, NaN or None for "no score". `media`
are [B, C, H, W] or [B, C, T, H, W] in [0, 1]. A reward gets those columns of the batch that its signature names, and may have
the attributes of `Traits`. See `amd_plugin.hookspecs.Reward` for the type and docs/rewards.md for how to write one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from amd_plugin.errors import InputError

LOGITS = 2.0  # significant difference of logits or log-probabilities: odds of seven to one

Media = Literal["image", "video", "any", "pil"]


class Traits(NamedTuple):
    """The attributes a reward may have; all optional.

    Attributes:
        differentiable: whether gradients reach the media when they are enabled.
        media: kind of media the reward takes: ``image`` ([B, C, H, W] only), ``video`` ([B, C, T, H, W] only), ``any``, or
            ``pil`` (a list of PIL images; for videos a list of such lists).
        version: version of the scores, changed whenever the same media get other scores.
        unit: difference of scores that counts as significant: `LOGITS` for logits and log-probabilities; 0 if unknown.
    """

    differentiable: bool = False
    media: Media = "any"
    version: str = ""
    unit: float = 0.0


def traits(reward: Any) -> Traits:
    """The attributes of `reward`, with defaults for those it lacks.

    Raises:
        InputError: for an attribute with an invalid value.
    """
    values: dict[str, Any] = {name: getattr(reward, name, default) for name, default in Traits._field_defaults.items()}
    own = Traits(**values)
    name = type(reward).__name__
    if own.media not in get_args(Media):
        raise InputError(f"reward {name}: media must be one of {', '.join(get_args(Media))}, got {own.media!r}")
    for field, kind in (("differentiable", bool), ("version", str)):
        if not isinstance(values[field], kind):
            raise InputError(f"reward {name}: {field} must be a {kind.__name__}, got {values[field]!r}")
    number = isinstance(own.unit, int | float) and not isinstance(own.unit, bool)
    if not (number and math.isfinite(own.unit) and own.unit >= 0):
        raise InputError(f"reward {name}: unit must be a number of at least 0, got {own.unit!r}")
    return own


def to_pil(media: Tensor) -> list[Any]:
    """Images [B, 1 or 3, H, W] in [0, 1] as PIL images; videos [B, 1 or 3, T, H, W] as lists of PIL images.

    Raises:
        ValueError: for media of another number of dimensions.
    """
    from diffusers.image_processor import VaeImageProcessor  # takes seconds to import

    if media.dim() == 5:
        return [to_pil(frames) for frames in media.transpose(1, 2)]
    if media.dim() != 4:
        raise ValueError(f"PIL pictures need media [B, C, H, W] or [B, C, T, H, W], got {tuple(media.shape)}")
    pixels = media.detach().float().clamp(0, 1)
    pictures: list[Any] = VaeImageProcessor.numpy_to_pil(VaeImageProcessor.pt_to_numpy(pixels))
    return pictures


def present(media: Tensor, wanted: Media) -> Tensor | list[Any]:
    """`media` [B, C, (T,) H, W] in the form that a reward whose trait `media` is `wanted` takes.

    Raises:
        ValueError: for videos where the reward takes images, and vice versa.
    """
    if wanted == "pil":
        return to_pil(media)
    dims = {"image": 4, "video": 5}.get(wanted, media.dim())
    if media.dim() != dims:
        raise ValueError(f"takes media of kind '{wanted}', with {dims} dimensions, got shape {tuple(media.shape)}")
    return media


def score_frames(
    score: Callable[[Tensor, Sequence[str]], Tensor], media: Tensor, prompts: Sequence[str], frames: int, batch_size: int
) -> Tensor:
    """Scores [B, N] of N <= `frames` evenly spread frames of each sample; an image is a video of one frame.

    Args:
        score: function from images [M, 3, H, W] fp32 and M prompts to scores [M].
        media: images [B, 1 or 3, H, W] or videos [B, 1 or 3, T, H, W].
        prompts: one prompt per sample.
        frames: largest number of frames scored per video.
        batch_size: number of images scored at a time.

    Raises:
        ValueError: for media of another shape, or another number of prompts.
    """
    video = media.unsqueeze(2) if media.dim() == 4 else media
    if video.dim() != 5 or video.shape[1] not in (1, 3) or 0 in video.shape:
        raise ValueError(f"media must be [B, 1 or 3, H, W] or [B, 1 or 3, T, H, W], got {tuple(media.shape)}")
    if len(prompts) != len(media):
        raise ValueError(f"needs one prompt per sample, got {len(prompts)} for {len(media)} samples")
    chosen = torch.linspace(0, video.shape[2] - 1, min(frames, video.shape[2])).round().long()
    images = video[:, :, chosen.to(media.device)].transpose(1, 2).flatten(0, 1)
    frame_prompts = [prompt for prompt in prompts for _ in chosen]
    parts = [
        score(part.float().expand(-1, 3, -1, -1), frame_prompts[i * batch_size : (i + 1) * batch_size])
        for i, part in enumerate(torch.split(images, batch_size))
    ]
    return torch.cat(parts).reshape(len(media), len(chosen))


def resize(images: Tensor, edge: int, fit: Literal["crop", "pad"]) -> Tensor:
    """Images [N, C, H, W] as squares of `edge` pixels, bicubic and antialiased as in PIL, without PIL's rounding to bytes.

    Args:
        images: images [N, C, H, W] in [0, 1].
        edge: side of the squares in pixels.
        fit: ``crop`` scales the shorter side to `edge` and crops the centre; ``pad`` scales the longer side and pads in black.
    """
    height, width = images.shape[2:]
    if fit == "crop":
        size = [int(edge * side / min(height, width)) for side in (height, width)]
    else:
        size = [max(1, round(edge * side / max(height, width))) for side in (height, width)]
    if size != [height, width]:
        images = torch.nn.functional.interpolate(images, size, mode="bicubic", antialias=True).clamp(0, 1)
    if fit == "pad":
        up, left = ((edge - side) // 2 for side in size)
        return torch.nn.functional.pad(images, (left, edge - size[1] - left, up, edge - size[0] - up))
    top, left = (round((side - edge) / 2) for side in size)
    return images[:, :, top : top + edge, left : left + edge]
