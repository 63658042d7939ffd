"""How well a picture or video fits its prompt by a CLIP-like model: CLIP itself (2103.00020), or PickScore (2305.01569)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

from amd_plugin.errors import InputError
from amd_plugin.models.pretrained import DTYPES, quiet


class ClipReward:
    """Similarity of image and text embeddings, times the model's own temperature; a video is the mean over some of its frames.

    Args:
        path: folder or hub id of a `CLIPModel`, e.g. openai/clip-vit-large-patch14 or yuvalkirstain/PickScore_v1.
        processor: folder or hub id of its tokenizer and image processor, where these live elsewhere, as PickScore's do.
        revision: of the model on the hub; a commit hash pins it.
        dtype: of its weights.
        frames: of a video that are looked at, evenly spread.
        batch_size: images at a time.

    Raises:
        InputError: if it cannot be loaded, or its tokenizer does not tell words apart.
    """

    def __init__(
        self,
        path: str,
        processor: str | None = None,
        revision: str | None = None,
        dtype: Literal["fp32", "bf16", "fp16"] = "fp32",
        frames: Annotated[int, Field(ge=1)] = 4,
        batch_size: Annotated[int, Field(ge=1)] = 32,
    ):
        self._frames, self._batch_size = frames, batch_size
        parts, of_parts = processor or path, None if processor else revision
        try:
            with quiet():
                model = CLIPModel.from_pretrained(path, revision=revision, dtype=DTYPES[dtype], use_safetensors=True)
                self._tokenizer = AutoTokenizer.from_pretrained(parts, revision=of_parts)
                images = CLIPImageProcessor.from_pretrained(parts, revision=of_parts)
        except Exception as error:  # OSError, ValueError, hub and safetensors errors alike
            cause = " ".join(str(error).split())[:300]
            what = f"{path} cannot be read as a CLIP model with tokenizer and image processor: {type(error).__name__}: {cause}"
            raise InputError(f"reward clip: {what}. Check the name, the network, and `processor`") from error
        self._check_words(parts)
        self._model: Any = model.requires_grad_(False).eval()
        self._mean = torch.tensor(images.image_mean).reshape(1, -1, 1, 1)
        self._std = torch.tensor(images.image_std).reshape(1, -1, 1, 1)
        self._edge: int = model.config.vision_config.image_size

    @torch.no_grad()
    def __call__(self, media: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores [B] fp32 of media [B, 1 or 3, H, W] or [B, 1 or 3, T, H, W] in [0, 1]."""
        self._model.to(media.device)
        frames = media.unsqueeze(2) if media.dim() == 4 else media
        shown = torch.linspace(0, frames.shape[2] - 1, min(self._frames, frames.shape[2])).round().long()
        images = frames[:, :, shown.to(media.device)].transpose(1, 2).flatten(0, 1)
        seen = torch.cat([self._see(part) for part in images.split(self._batch_size)])
        unique = list(dict.fromkeys(prompts))
        read = torch.cat([self._read(unique[i : i + self._batch_size]) for i in range(0, len(unique), self._batch_size)])
        asked = read[torch.tensor([unique.index(prompt) for prompt in prompts], device=media.device)]
        similarity = (seen.unflatten(0, (len(media), len(shown))) * asked[:, None]).sum(-1).mean(1)
        return self._model.logit_scale.float().exp() * similarity

    def _see(self, images: Tensor) -> Tensor:
        """Unit embeddings of images [N, C, H, W], resized to the model's edge and cropped as its processor would."""
        height, width = images.shape[2:]
        scale = self._edge / min(height, width)
        size = [max(self._edge, round(height * scale)), max(self._edge, round(width * scale))]
        images = images.float().expand(-1, 3, -1, -1)
        if size != [height, width]:
            images = torch.nn.functional.interpolate(images, size, mode="bicubic", antialias=True).clamp(0, 1)
        top, left = ((edge - self._edge) // 2 for edge in size)
        images = images[:, :, top : top + self._edge, left : left + self._edge]
        pixels = (images - self._mean.to(images)) / self._std.to(images)
        return _unit(self._model.get_image_features(pixel_values=pixels.to(self._model.dtype)))

    def _read(self, prompts: Sequence[str]) -> Tensor:
        """Unit embeddings of prompts, cut where they are too long."""
        tokens = self._tokenizer(
            list(prompts), padding="max_length", truncation=True, return_tensors="pt",
            max_length=self._model.config.text_config.max_position_embeddings,
        ).to(self._model.device)  # fmt: skip
        return _unit(self._model.get_text_features(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask))

    def _check_words(self, where: str) -> None:
        """A tokenizer whose files are incomplete still loads, and takes all words for the same unknown one."""
        special = set(self._tokenizer.all_special_ids)
        one, two = (
            [t for t in self._tokenizer(text).input_ids if t not in special] for text in ("a red apple", "two tall blue houses")
        )
        if not one or not two or one == two:
            what = "does not tell 'a red apple' from 'two tall blue houses'; its vocabulary or merges are missing"
            raise InputError(f"reward clip: the tokenizer of {where} {what}. Fetch it again, or name `processor`")


def _unit(features: Any) -> Tensor:
    """Of length 1, fp32; newer versions of transformers wrap the embeddings."""
    embedded: Tensor = features if isinstance(features, Tensor) else features.pooler_output
    return torch.nn.functional.normalize(embedded.float(), dim=-1)
