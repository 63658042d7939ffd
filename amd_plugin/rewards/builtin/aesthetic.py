"""How pleasing a picture looks, whatever its prompt: LAION's improved aesthetic predictor, a few layers on CLIP embeddings."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from amd_plugin.errors import InputError
from amd_plugin.rewards.builtin.clip import read_clip
from amd_plugin.rewards.builtin.frames import Count, Dtype, FrameReward
from amd_plugin.rewards.builtin.weights import checkpoint_file, fill, read_weights, score_head

NAMES = ("aesthetic.safetensors", "sac+logos+ava1-l14-linearMSE.safetensors", "sac+logos+ava1-l14-linearMSE.pth")


class AestheticReward(FrameReward):
    """Scores of roughly 1 to 10; for a video, the mean over some of its frames.

    Args:
        path: file of the predictor, e.g. sac+logos+ava1-l14-linearMSE.pth, or a folder or hub id that has it.
        clip: folder or hub id of the CLIP model it was trained on.
        revision: revision of the predictor on the hub.
        dtype: precision of CLIP's weights; the predictor's own stay fp32.
        frames: largest number of frames scored per video, evenly spread.
        batch_size: number of images scored at a time.

    Raises:
        InputError: if either cannot be loaded, or they do not fit each other.
    """

    version = "1"

    def __init__(
        self,
        path: str,
        clip: str = "openai/clip-vit-large-patch14",
        revision: str | None = None,
        dtype: Dtype = "fp32",
        frames: Count = 4,
        batch_size: Count = 32,
    ):
        file = checkpoint_file("aesthetic", path, NAMES, revision)
        state = {name.removeprefix("layers."): tensor.float() for name, tensor in read_weights("aesthetic", file).items()}
        self._clip = read_clip("aesthetic", clip, None, None, dtype)
        width = self._clip.model.config.projection_dim
        first = state.get("0.weight")
        if first is not None and first.dim() == 2 and first.shape[1] != width:
            message = f"{file} takes embeddings of {first.shape[1]} numbers, those of {clip} have {width}"
            raise InputError(f"reward aesthetic: {message}. Name the model it was trained on as `clip`")
        self._head = score_head(width)
        fill("aesthetic", self._head, state, str(file))
        super().__init__(nn.ModuleList([self._clip, self._head]), frames, batch_size)

    def _score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        scores: Tensor = self._head(self._clip.embed_images(images))
        return scores[:, 0]
