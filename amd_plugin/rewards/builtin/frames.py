"""Networks that score images, as rewards that take videos too."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from amd_plugin.rewards.protocol import score_frames

Dtype = Literal["fp32", "bf16", "fp16"]
Count = Annotated[int, Field(ge=1)]


class FrameReward(ABC):
    """Mean score over evenly spread frames; an image is a video of one frame.

    Args:
        network: network behind the scores; it is moved to the device of the media.
        frames: largest number of frames scored per video.
        batch_size: number of images scored at a time.

    Attributes:
        network: network behind the scores.
    """

    differentiable = True

    def __init__(self, network: nn.Module, frames: int, batch_size: int):
        self.network, self._frames, self._batch_size = network, frames, batch_size

    def __call__(self, media: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores [B] fp32 of media [B, 1 or 3, H, W] or [B, 1 or 3, T, H, W] in [0, 1]."""
        self.network.to(media.device)
        return score_frames(self._score, media, prompts, self._frames, self._batch_size).mean(1)

    @abstractmethod
    def _score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores [M] of images [M, 3, H, W] in [0, 1] and M prompts."""
