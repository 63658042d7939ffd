"""Class-conditional transformers on image latents: DiT, which predicts the noise, and SiT, which predicts the flow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from amd_plugin.errors import InputError, OptionError
from amd_plugin.models import autoencoders
from amd_plugin.models.family import Condition, Features, Network, Size, middle_block, time_embedding


class DiT:
    """`DiTPipeline`. A prompt is a class, by its number or by one of its names in the pipeline's ``id2label``."""

    pipeline: ClassVar[str] = "DiTPipeline"
    component: ClassVar[str] = "transformer"
    network: ClassVar[str] = "DiTTransformer2DModel"
    autoencoder: ClassVar[str] = "AutoencoderKL"
    video: ClassVar[bool] = False
    scales_input: ClassVar[bool] = True

    encode_media = staticmethod(autoencoders.encode)
    decode = staticmethod(autoencoders.decode)

    def __init__(self, index: Mapping[str, Any], config: Mapping[str, Any]):
        self._config = config
        self.text_length: int | None = None
        names = index.get("id2label") or {}
        self._classes = {name.strip(): int(key) for key, value in names.items() for name in value.split(",")}

    def call(self, network: Network, x_t: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        """Output [B, C, h, w], without the channels of a learnt variance, which the pipeline drops too."""
        output: Tensor = network(x_t, timestep=timestep, class_labels=condition["class_labels"]).sample
        return output[:, : x_t.shape[1]]

    def size(self, vae: nn.Module, pixels: tuple[int, int] | None, frames: int | None) -> Size:
        """The only size the transformer generates."""
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
        """Class numbers [B]; the number after the last class means "no class"."""
        count = self._config["num_embeds_ada_norm"]
        if negative is not None:
            return {"class_labels": torch.full((len(prompts),), count)}
        return {"class_labels": torch.tensor([self._class(prompt, count) for prompt in prompts])}

    def _class(self, prompt: str, count: int) -> int:
        number = int(prompt) if prompt.isdecimal() else self._classes.get(prompt)
        if number is None or number >= count:
            first = ", ".join(list(self._classes)[:3])
            names = f"one of the pipeline's names ({first}, ...)" if first else "and the pipeline has no names for them"
            raise InputError(f"data.source: a prompt for this model is a class number below {count}, {names}, got '{prompt}'")
        return number

    def condition_shapes(self, tokens: int) -> dict[str, tuple[int, ...]]:
        """One class number per sample."""
        return {"class_labels": ()}

    def features(self, network: nn.Module) -> Features:
        """Tokens after the middle block."""
        return middle_block(network.transformer_blocks, self._config)

    def time_embeddings(self, network: nn.Module) -> Sequence[Features]:
        """One per block."""
        blocks: Any = network.transformer_blocks
        return [time_embedding(block.norm1.emb.timestep_embedder) for block in blocks]

    def sampling(self, prompt: str, size: Size) -> dict[str, Any]:
        """No guidance: the student has learnt the guided distribution."""
        return {"class_labels": [self._class(prompt, self._config["num_embeds_ada_norm"])], "guidance_scale": 1.0}
