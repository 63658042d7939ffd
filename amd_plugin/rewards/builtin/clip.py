"""How well a picture or video fits its prompt by a CLIP-like model: CLIP itself (2103.00020), or PickScore (2305.01569)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from amd_plugin.errors import InputError
from amd_plugin.models.pretrained import DTYPES
from amd_plugin.rewards.builtin.weights import check_words, reading
from amd_plugin.rewards.protocol import LOGITS, Traits, resize, score_frames

Dtype = Literal["fp32", "bf16", "fp16"]
Count = Annotated[int, Field(ge=1)]
HINT = "Fetch it again, or name `processor`"


class Clip(nn.Module):
    """A `CLIPModel` with its tokenizer and the normalisation of its images; frozen, but gradients pass through it.

    Args:
        model: the network.
        tokenizer: of the prompts.
        mean, std: per channel, that images are normalised with.
        fit: how images become squares, see `resize`.
    """

    def __init__(
        self, model: Any, tokenizer: Any, mean: Sequence[float], std: Sequence[float], fit: Literal["crop", "pad"] = "crop"
    ):
        super().__init__()
        self.model: Any = model.requires_grad_(False).eval()
        self._tokenizer, self._fit = tokenizer, fit
        self.register_buffer("_mean", torch.tensor(mean).reshape(1, -1, 1, 1), persistent=False)
        self.register_buffer("_std", torch.tensor(std).reshape(1, -1, 1, 1), persistent=False)

    def see(self, images: Tensor) -> Tensor:
        """Unit embeddings of images [N, 3, H, W] in [0, 1]."""
        pixels = (resize(images, self.model.config.vision_config.image_size, self._fit) - self._mean) / self._std
        return _unit(self.model.get_image_features(pixel_values=pixels.to(self.model.dtype)))

    def read(self, prompts: Sequence[str]) -> Tensor:
        """Unit embeddings [N, D] of N prompts, cut where they are too long; repeated ones are read once."""
        unique = list(dict.fromkeys(prompts))
        tokens = self._tokenizer(
            unique, padding="max_length", truncation=True, return_tensors="pt",
            max_length=self.model.config.text_config.max_position_embeddings,
        ).to(self.model.device)  # fmt: skip
        embedded = _unit(self.model.get_text_features(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask))
        return embedded[torch.tensor([unique.index(prompt) for prompt in prompts], device=embedded.device)]

    def similarity(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Cosines [N] between images [N, 3, H, W] and their prompts."""
        return (self.see(images) * self.read(prompts)).sum(-1)


def read_clip(reward: str, path: str, processor: str | None, revision: str | None, dtype: Dtype) -> Clip:
    """The model at `path` with the tokenizer and image processor at `processor`, by default there too.

    Raises:
        InputError: if it cannot be read, lacks weights, or its tokenizer does not tell words apart.
    """
    parts, of_parts = processor or path, None if processor else revision
    kind, hint = "a CLIP model with tokenizer and image processor", "Check the name, the network, and `processor`"
    with reading(reward, path, kind, hint):
        # Only here: every command lists the rewards, few use this one, and without torchvision transformers remarks on it.
        from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

        model, found = CLIPModel.from_pretrained(
            path, revision=revision, dtype=DTYPES[dtype], use_safetensors=True, output_loading_info=True
        )
        tokenizer = AutoTokenizer.from_pretrained(parts, revision=of_parts)
        images = CLIPImageProcessor.from_pretrained(parts, revision=of_parts)
    absent = sorted(map(str, (*found["missing_keys"], *found["mismatched_keys"])))
    if absent:  # transformers would leave those at random
        what = f"the weights in {path} do not fit: {len(absent)} missing or of another shape: {', '.join(absent[:3])}"
        raise InputError(f"reward {reward}: {what}. Fetch it again")
    check_words(reward, tokenizer, parts, HINT)
    return Clip(model, tokenizer, images.image_mean, images.image_std)


class ClipReward:
    """Similarity of image and text embeddings, times the model's own temperature; a video is the mean over some of its frames.

    Args:
        path: folder or hub id of a `CLIPModel`, e.g. openai/clip-vit-large-patch14.
        processor: folder or hub id of its tokenizer and image processor, where these live elsewhere, as PickScore's do.
        revision: of the model on the hub; a commit hash pins it.
        dtype: of its weights.
        frames: of a video that are looked at, evenly spread.
        batch_size: images at a time.

    Raises:
        InputError: if it cannot be loaded, or its tokenizer does not tell words apart.
    """

    differentiable, media, version, unit = Traits(differentiable=True, version="1", unit=LOGITS)

    def __init__(
        self,
        path: str,
        processor: str | None = None,
        revision: str | None = None,
        dtype: Dtype = "fp32",
        frames: Count = 4,
        batch_size: Count = 32,
    ):
        self._frames, self._batch_size = frames, batch_size
        self._clip = read_clip("clip", path, processor, revision, dtype)

    def __call__(self, media: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores [B] fp32 of media [B, 1 or 3, H, W] or [B, 1 or 3, T, H, W] in [0, 1]."""
        self._clip.to(media.device)
        cosines = score_frames(self._clip.similarity, media, prompts, self._frames, self._batch_size)
        return self._clip.model.logit_scale.float().exp() * cosines.mean(1)


def pickscore(
    path: str = "yuvalkirstain/PickScore_v1",
    processor: str | None = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
    revision: str | None = None,
    dtype: Dtype = "fp32",
    frames: Count = 4,
    batch_size: Count = 32,
) -> ClipReward:
    """`ClipReward` with PickScore's weights, and the tokenizer and image processor of the model it was trained from."""
    return ClipReward(path, processor, revision, dtype, frames, batch_size)


def _unit(features: Any) -> Tensor:
    """Of length 1, fp32; newer versions of transformers wrap the embeddings."""
    embedded: Tensor = features if isinstance(features, Tensor) else features.pooler_output
    return torch.nn.functional.normalize(embedded.float(), dim=-1)
