"""How well a picture or video fits its prompt by a CLIP-like model: CLIP itself (2103.00020), or PickScore (2305.01569)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from amd_plugin.errors import InputError
from amd_plugin.models.dtypes import DTYPES
from amd_plugin.rewards.builtin.frames import Count, Dtype, FrameReward
from amd_plugin.rewards.builtin.weights import check_words, reading
from amd_plugin.rewards.protocol import LOGITS, resize

HINT = "Fetch it again, or name `processor`"


class Clip(nn.Module):
    """A `CLIPModel` with its tokenizer and image normalisation; frozen, but gradients pass through it.

    Args:
        model: the `CLIPModel`.
        tokenizer: tokenizer of the prompts.
        mean: mean of each image channel, subtracted.
        std: standard deviation of each image channel, divided by.
        fit: way in which images become squares, see `resize`.

    Attributes:
        model: the `CLIPModel`.
        tokenizer: tokenizer of the prompts.
    """

    _mean: Tensor
    _std: Tensor

    def __init__(
        self, model: Any, tokenizer: Any, mean: Sequence[float], std: Sequence[float], fit: Literal["crop", "pad"] = "crop"
    ):
        super().__init__()
        self.model: Any = model.requires_grad_(False).eval()
        self.tokenizer, self._fit = tokenizer, fit
        self.register_buffer("_mean", torch.tensor(mean).reshape(1, -1, 1, 1), persistent=False)
        self.register_buffer("_std", torch.tensor(std).reshape(1, -1, 1, 1), persistent=False)

    def embed_images(self, images: Tensor) -> Tensor:
        """Unit embeddings [N, D] of images [N, 3, H, W] in [0, 1]."""
        pixels = (resize(images, self.model.config.vision_config.image_size, self._fit) - self._mean) / self._std
        return _unit(self.model.get_image_features(pixel_values=pixels.to(self.model.dtype)))

    def embed_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Unit embeddings [N, D] of N prompts, truncated where they are too long; repeated ones are computed once."""
        unique = list(dict.fromkeys(prompts))
        tokens = self.tokenizer(
            unique, padding="max_length", truncation=True, return_tensors="pt",
            max_length=self.model.config.text_config.max_position_embeddings,
        ).to(self.model.device)  # fmt: skip
        embedded = _unit(self.model.get_text_features(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask))
        return embedded[torch.tensor([unique.index(prompt) for prompt in prompts], device=embedded.device)]

    def similarity(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Cosines [N] between images [N, 3, H, W] and their prompts."""
        return (self.embed_images(images) * self.embed_prompts(prompts)).sum(-1)


def read_clip(reward: str, path: str, processor: str | None, revision: str | None, dtype: Dtype) -> Clip:
    """The model at `path` with the tokenizer and image processor at `processor`, by default at `path` too.

    Args:
        reward: name of the reward, for error messages.
        path: folder or hub id of the model.
        processor: folder or hub id of tokenizer and image processor; None where these lie beside the model.
        revision: revision of `path` on the hub.
        dtype: precision of the weights.

    Raises:
        InputError: if it cannot be read, lacks weights, or its tokenizer does not tell words apart.
    """
    parts, parts_revision = processor or path, None if processor else revision
    kind, hint = "a CLIP model with tokenizer and image processor", "Check the name, the network, and `processor`"
    with reading(reward, path, kind, hint):
        # Imported here because every command lists the rewards, few use this one, and transformers warns without torchvision.
        from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

        load_model: Any = CLIPModel.from_pretrained  # its annotations leave out revision=None and the loading info
        load_processor: Any = CLIPImageProcessor.from_pretrained
        model, loading = load_model(
            path, revision=revision, dtype=DTYPES[dtype], use_safetensors=True, output_loading_info=True
        )
        tokenizer = AutoTokenizer.from_pretrained(parts, revision=parts_revision)
        images = load_processor(parts, revision=parts_revision)
    absent = sorted(map(str, (*loading["missing_keys"], *loading["mismatched_keys"])))
    if absent:  # transformers would leave those at random
        message = f"the weights in {path} do not fit: {len(absent)} missing or of another shape: {', '.join(absent[:3])}"
        raise InputError(f"reward {reward}: {message}. Fetch it again")
    check_words(reward, tokenizer, parts, HINT)
    return Clip(model, tokenizer, images.image_mean, images.image_std)


class ClipReward(FrameReward):
    """Cosine of image and text embeddings, times the model's own logit scale; for a video, the mean over some of its frames.

    Args:
        path: folder or hub id of a `CLIPModel`, e.g. openai/clip-vit-large-patch14.
        processor: folder or hub id of its tokenizer and image processor, where these lie elsewhere, as PickScore's do.
        revision: revision of the model on the hub; a commit hash pins it.
        dtype: precision of its weights.
        frames: largest number of frames scored per video, evenly spread.
        batch_size: number of images scored at a time.

    Raises:
        InputError: if it cannot be loaded, or its tokenizer does not tell words apart.
    """

    version = "1"
    unit = LOGITS

    def __init__(
        self,
        path: str,
        processor: str | None = None,
        revision: str | None = None,
        dtype: Dtype = "fp32",
        frames: Count = 4,
        batch_size: Count = 32,
    ):
        self._clip = read_clip("clip", path, processor, revision, dtype)
        super().__init__(self._clip, frames, batch_size)

    def __call__(self, media: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores [B] fp32 of media [B, 1 or 3, H, W] or [B, 1 or 3, T, H, W] in [0, 1]."""
        cosines = super().__call__(media, prompts)
        scores: Tensor = self._clip.model.logit_scale.float().exp() * cosines
        return scores

    def _score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return self._clip.similarity(images, prompts)


def pickscore(
    path: str = "yuvalkirstain/PickScore_v1",
    processor: str | None = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
    revision: str | None = None,
    dtype: Dtype = "fp32",
    frames: Count = 4,
    batch_size: Count = 32,
) -> ClipReward:
    """`ClipReward` with PickScore's weights, and the tokenizer and image processor of the model it was trained from.

    Args:
        path: folder or hub id of a `CLIPModel` with PickScore's weights.
        processor: folder or hub id of its tokenizer and image processor; null where they lie beside the weights.
        revision: revision of the model on the hub; a commit hash pins it.
        dtype: precision of its weights.
        frames: largest number of frames scored per video, evenly spread.
        batch_size: number of images scored at a time.
    """
    return ClipReward(path, processor, revision, dtype, frames, batch_size)


def _unit(features: Any) -> Tensor:
    """`features` at length 1, fp32; newer versions of transformers wrap the embeddings in an output object."""
    embedded: Tensor = features if isinstance(features, Tensor) else features.pooler_output
    return torch.nn.functional.normalize(embedded.float(), dim=-1)
