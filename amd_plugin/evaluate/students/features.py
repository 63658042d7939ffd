"""Features of pictures and videos, by any vision model of transformers. Sets of samples are compared in them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel
from transformers.image_processing_base import ImageProcessingMixin

from amd_plugin.config import FeaturesConfig
from amd_plugin.errors import InputError, unreadable_is_input_error
from amd_plugin.models.dtypes import DTYPES
from amd_plugin.models.quiet import quiet


class VisionFeatures:
    """CLIP's image embeddings, or the pooled output of any other vision model, e.g. facebook/dinov2-base.

    Args:
        config: model to load.

    Attributes:
        name: name of the features, for people.
        kind: model type as transformers calls it, e.g. ``clip``.

    Raises:
        InputError: if the model cannot be loaded, or does not take pictures.
    """

    def __init__(self, config: FeaturesConfig):
        self._batch = config.batch_size
        message = f"evaluate.features: {config.path} cannot be read as a model with an image processor"
        with quiet(), unreadable_is_input_error(message, " Check the name and the network"):
            self._model: Any = AutoModel.from_pretrained(
                config.path, revision=config.revision, dtype=DTYPES[config.dtype], use_safetensors=True
            )
            processor = ImageProcessingMixin.get_image_processor_dict(config.path, revision=config.revision)[0]
        self._model.requires_grad_(False).eval()
        self.kind = str(self._model.config.model_type)
        self.name = f"features of {config.path} ({type(self._model).__name__})"
        if self._model.main_input_name != "pixel_values" and not hasattr(self._model, "get_image_features"):
            raise InputError(f"evaluate.features: {config.path} is a {type(self._model).__name__}, and does not take pictures")
        self._edge: int = _edge(processor) or getattr(self._model.config, "vision_config", self._model.config).image_size
        self._mean, self._std = (torch.tensor(processor[key]).reshape(1, -1, 1, 1) for key in ("image_mean", "image_std"))

    @torch.no_grad()
    def frames(self, media: Tensor) -> Tensor:
        """Features [B, T, D] fp32 of every frame of media [B, 1 or 3, (T,) H, W] in [0, 1]; T is 1 for pictures."""
        self._model.to(media.device)
        videos = media.unsqueeze(2) if media.dim() == 4 else media
        images = videos.transpose(1, 2).flatten(0, 1)
        features = torch.cat([self._features(part) for part in torch.split(images, self._batch)])
        return torch.unflatten(features, 0, (len(videos), -1)).cpu()

    def _features(self, images: Tensor) -> Tensor:
        """Features [N, D] fp32 of images [N, 1 or 3, H, W], resized and cropped as the model's processor does."""
        height, width = images.shape[2:]
        scale = self._edge / min(height, width)
        size = [max(self._edge, round(height * scale)), max(self._edge, round(width * scale))]
        images = images.float().expand(-1, 3, -1, -1)
        if size != [height, width]:
            images = torch.nn.functional.interpolate(images, size, mode="bicubic", antialias=True).clamp(0, 1)
        top, left = ((edge - self._edge) // 2 for edge in size)
        images = images[:, :, top : top + self._edge, left : left + self._edge]
        pixels = ((images - self._mean.to(images)) / self._std.to(images)).to(self._model.dtype)
        if hasattr(self._model, "get_image_features"):
            output = self._model.get_image_features(pixel_values=pixels)
        else:
            output = self._model(pixel_values=pixels)
        if isinstance(output, Tensor):
            return output.float()
        pooled = getattr(output, "pooler_output", None)
        features: Tensor = output.last_hidden_state[:, 0] if pooled is None else pooled
        return features.float().flatten(1)


def _edge(processor: dict[str, Any]) -> int | None:
    """The side of the pictures that an image processor makes; None where its config has no size."""
    for key in ("crop_size", "size"):
        size = processor.get(key)
        if isinstance(size, int):
            return size
        if isinstance(size, dict):
            return int(size.get("height") or size.get("shortest_edge") or 0) or None
    return None
