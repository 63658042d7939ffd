"""What a reward is, and what it may say about itself.

A reward is a callable ``reward(media, prompts, **columns) -> [B]``: higher is better, NaN or None for "no answer". `media`
are [B, C, H, W] or [B, C, T, H, W] in [0, 1]; columns of the batch go to rewards that name them. It may have the attributes of
`Traits`. See `amd_plugin.hookspecs.Reward` for the type and docs/rewards.md for how to write one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from amd_plugin.errors import InputError

LOGITS = 2.0  # a clear difference of logits, or of log-probabilities: odds of seven to one

Media = Literal["image", "video", "any", "pil"]


class Traits(NamedTuple):
    """What a reward says about itself; all optional.

    Attributes:
        differentiable: whether gradients reach the media when they are enabled.
        media: ``image`` ([B, C, H, W] only), ``video`` ([B, C, T, H, W] only), ``any``, or ``pil``: a list of PIL images, of
            lists of them for videos.
        version: changes whenever the same media get other scores.
        unit: a clear difference of scores: `LOGITS` for logits and log-probabilities; 0: nobody knows.
    """

    differentiable: bool = False
    media: Media = "any"
    version: str = ""
    unit: float = 0.0


def traits(reward: Any) -> Traits:
    """The attributes of `reward`.

    Raises:
        InputError: for one that has a value it cannot have.
    """
    found = Traits(**{name: getattr(reward, name, default) for name, default in Traits._field_defaults.items()})
    name = type(reward).__name__
    if found.media not in get_args(Media):
        raise InputError(f"reward {name}: media must be one of {', '.join(get_args(Media))}, got {found.media!r}")
    for field, kind in (("differentiable", bool), ("version", str)):
        if not isinstance(value := getattr(found, field), kind):
            raise InputError(f"reward {name}: {field} must be a {kind.__name__}, got {value!r}")
    number = isinstance(found.unit, int | float) and not isinstance(found.unit, bool)
    if not (number and math.isfinite(found.unit) and found.unit >= 0):
        raise InputError(f"reward {name}: unit must be a number of at least 0, got {found.unit!r}")
    return found


def to_pil(media: Tensor) -> list[Any]:
    """Images [B, 1 or 3, H, W] in [0, 1] as PIL images; videos [B, C, T, H, W] as lists of them."""
    from diffusers.image_processor import VaeImageProcessor  # takes seconds to import

    if media.dim() == 5:
        return [to_pil(frames) for frames in media.transpose(1, 2)]
    if media.dim() != 4:
        raise ValueError(f"PIL pictures need media [B, C, H, W] or [B, C, T, H, W], got {tuple(media.shape)}")
    pixels = media.detach().float().clamp(0, 1)
    pictures: list[Any] = VaeImageProcessor.numpy_to_pil(VaeImageProcessor.pt_to_numpy(pixels))
    return pictures


def present(media: Tensor, wanted: Media) -> Tensor | list[Any]:
    """`media` as a reward whose trait `media` is `wanted` takes them.

    Raises:
        ValueError: for videos where it takes images, and the other way round.
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
        score: from images [M, 3, H, W] fp32 and M prompts to [M].
        media: [B, 1 or 3, H, W] or [B, 1 or 3, T, H, W].
        prompts: B of them.
        frames: most to look at in a video.
        batch_size: images at a time.

    Raises:
        ValueError: for media of another shape, or another number of prompts.
    """
    video = media.unsqueeze(2) if media.dim() == 4 else media
    if video.dim() != 5 or video.shape[1] not in (1, 3) or 0 in video.shape:
        raise ValueError(f"media must be [B, 1 or 3, H, W] or [B, 1 or 3, T, H, W], got {tuple(media.shape)}")
    if len(prompts) != len(media):
        raise ValueError(f"needs one prompt per sample, got {len(prompts)} for {len(media)} samples")
    shown = torch.linspace(0, video.shape[2] - 1, min(frames, video.shape[2])).round().long()
    images = video[:, :, shown.to(media.device)].transpose(1, 2).flatten(0, 1)
    asked = [prompt for prompt in prompts for _ in shown]
    parts = [
        score(part.float().expand(-1, 3, -1, -1), asked[i * batch_size : (i + 1) * batch_size])
        for i, part in enumerate(images.split(batch_size))
    ]
    return torch.cat(parts).unflatten(0, (len(media), len(shown)))


def resize(images: Tensor, edge: int, fit: Literal["crop", "pad"]) -> Tensor:
    """Images [N, C, H, W] as squares of `edge`, bicubic and antialiased: what PIL does, but for rounding to bytes.

    Args:
        fit: ``crop`` the centre of the image whose shorter side is `edge`, or ``pad`` with black the one whose longer side is.
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
