"""How pleasing a picture is, whatever was asked for: LAION's improved aesthetic predictor, a few layers on CLIP embeddings."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from amd_plugin.errors import InputError
from amd_plugin.rewards.builtin.clip import Count, Dtype, read_clip
from amd_plugin.rewards.builtin.weights import checkpoint_file, fill, read_weights, score_head
from amd_plugin.rewards.protocol import Traits, score_frames

NAMES = ("aesthetic.safetensors", "sac+logos+ava1-l14-linearMSE.safetensors", "sac+logos+ava1-l14-linearMSE.pth")


class AestheticReward:
    """Roughly 1 to 10; a video is the mean over some of its frames.

    Args:
        path: the predictor's file, e.g. sac+logos+ava1-l14-linearMSE.pth, a folder or a hub id with it.
        clip: folder or hub id of the CLIP model it was trained on.
        revision: of the predictor on the hub.
        dtype: of CLIP's weights; the predictor's own stay fp32.
        frames: of a video that are looked at, evenly spread.
        batch_size: images at a time.

    Raises:
        InputError: if either cannot be loaded, or they do not fit each other.
    """

    differentiable, media, version, unit = Traits(differentiable=True, version="1")

    def __init__(
        self,
        path: str,
        clip: str = "openai/clip-vit-large-patch14",
        revision: str | None = None,
        dtype: Dtype = "fp32",
        frames: Count = 4,
        batch_size: Count = 32,
    ):
        self._frames, self._batch_size = frames, batch_size
        file = checkpoint_file("aesthetic", path, NAMES, revision)
        state = {name.removeprefix("layers."): tensor.float() for name, tensor in read_weights("aesthetic", file).items()}
        self._clip = read_clip("aesthetic", clip, None, None, dtype)
        width = self._clip.model.config.projection_dim
        first = state.get("0.weight")
        if first is not None and first.dim() == 2 and first.shape[1] != width:
            what = f"{file} takes embeddings of {first.shape[1]} numbers, those of {clip} have {width}"
            raise InputError(f"reward aesthetic: {what}. Name the model it was trained on as `clip`")
        self._head = score_head(width)
        fill("aesthetic", self._head, state, str(file))

    def __call__(self, media: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores [B] fp32 of media [B, 1 or 3, H, W] or [B, 1 or 3, T, H, W] in [0, 1]."""
        self._clip.to(media.device)
        self._head.to(media.device)
        return score_frames(self._score, media, prompts, self._frames, self._batch_size).mean(1)

    def _score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        scores: Tensor = self._head(self._clip.see(images))
        return scores[:, 0]
