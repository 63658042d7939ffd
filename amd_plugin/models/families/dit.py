"""Class-conditional transformers over image latents: DiT, which predicts noise, and SiT, which predicts the flow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from amd_plugin.errors import InputError, OptionError
from amd_plugin.models import autoencoders
from amd_plugin.models.family import Condition, Features, Network, Size


class DiT:
    """`DiTPipeline`. A prompt is a class: its number, or one of the names in the pipeline's ``id2label``."""

    pipeline: ClassVar[str] = "DiTPipeline"
    component: ClassVar[str] = "transformer"
    network: ClassVar[str] = "DiTTransformer2DModel"
    autoencoder: ClassVar[str] = "AutoencoderKL"
    video: ClassVar[bool] = False
    scales_input: ClassVar[bool] = True

    def __init__(self, index: Mapping[str, Any], config: Mapping[str, Any]):
        self._config = config
        self.text_length: int | None = None
        names = index.get("id2label") or {}
        self._classes = {name.strip(): int(key) for key, value in names.items() for name in value.split(",")}

    def call(self, network: Network, x_t: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        """[B, C, h, w]; the channels of a learnt variance, where the network has them, are left out as by the pipeline."""
        return network(x_t, timestep=timestep, class_labels=condition["class_labels"]).sample[:, : x_t.shape[1]]

    def size(self, vae: nn.Module, pixels: tuple[int, int] | None, frames: int | None) -> Size:
        """The one size the transformer knows."""
        edge = self._config["sample_size"] * autoencoders.factor(vae)
        if pixels not in (None, (edge, edge)):
            raise OptionError("pixels", f"this transformer makes images of {[edge, edge]} only, got {list(pixels)}")
        if frames not in (None, 1):
            raise OptionError("frames", f"a {self.pipeline} makes images, got {frames}")
        return Size(edge, edge, 1)

    def sample_shape(self, vae: nn.Module, size: Size) -> tuple[int, ...]:
        """(4, 32, 32) for the released 256-pixel model."""
        return (self._config["in_channels"], self._config["sample_size"], self._config["sample_size"])

    def encode_prompts(self, pipeline: Any, prompts: Sequence[str], negative: str | None, size: Size) -> Condition:
        """Class numbers; the one after the last means "no class"."""
        count = self._config["num_embeds_ada_norm"]
        if negative is not None:
            return {"class_labels": torch.full((len(prompts),), count)}
        return {"class_labels": torch.tensor([self._class(prompt, count) for prompt in prompts])}

    def _class(self, prompt: str, count: int) -> int:
        number = int(prompt) if prompt.isdecimal() else self._classes.get(prompt)
        if number is None or number >= count:
            some = ", ".join(list(self._classes)[:3])
            known = f"one of the pipeline's names ({some}, ...)" if some else "and the pipeline has no names for them"
            raise InputError(f"data.source: a prompt for this model is a class number below {count}, {known}, got '{prompt}'")
        return number

    def condition_shapes(self, tokens: int) -> dict[str, tuple[int, ...]]:
        """A number."""
        return {"class_labels": ()}

    def encode_media(self, vae: nn.Module, media: Tensor) -> Tensor:
        """The posterior's mean, scaled."""
        return autoencoders.encode(vae, media)

    def decode(self, vae: nn.Module, latents: Tensor) -> Tensor:
        """[B, 3, H, W]."""
        return autoencoders.decode(vae, latents)

    def features(self, network: nn.Module) -> Features:
        """The middle block's."""
        width = self._config["num_attention_heads"] * self._config["attention_head_dim"]
        blocks = network.transformer_blocks
        return Features(blocks[len(blocks) // 2], width, 2)

    def time_embeddings(self, network: nn.Module) -> Sequence[Features]:
        """Every block has its own."""
        embedders = [block.norm1.emb.timestep_embedder for block in network.transformer_blocks]
        return [Features(embedder, embedder.linear_2.out_features, -1) for embedder in embedders]

    def sampling(self, prompt: str, size: Size) -> dict[str, Any]:
        """Without guidance, which the student has learnt."""
        return {"class_labels": [self._class(prompt, self._config["num_embeds_ada_norm"])], "guidance_scale": 1.0}
