"""Stable Diffusion 3 and 3.5: a multimodal transformer over image latents that predicts the flow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from amd_plugin.errors import OptionError
from amd_plugin.models import autoencoders
from amd_plugin.models.family import Condition, Features, Network, Size


class SD3:
    """`StableDiffusion3Pipeline` with its three text encoders."""

    pipeline: ClassVar[str] = "StableDiffusion3Pipeline"
    component: ClassVar[str] = "transformer"
    network: ClassVar[str] = "SD3Transformer2DModel"
    autoencoder: ClassVar[str] = "AutoencoderKL"
    video: ClassVar[bool] = False
    scales_input: ClassVar[bool] = False

    def __init__(self, index: Mapping[str, Any], config: Mapping[str, Any]):
        self._config = config
        self.text_length: int | None = None

    def call(self, network: Network, x_t: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        """[B, 16, h, w]."""
        text, pooled = condition["encoder_hidden_states"], condition["pooled_projections"]
        return network(x_t, encoder_hidden_states=text, pooled_projections=pooled, timestep=timestep).sample

    def size(self, vae: nn.Module, pixels: tuple[int, int] | None, frames: int | None) -> Size:
        """Square of the transformer's training size unless given."""
        if frames not in (None, 1):
            raise OptionError("frames", f"a {self.pipeline} makes images, got {frames}")
        trained = self._config["sample_size"] * autoencoders.factor(vae)
        size, edge = Size(*(pixels or (trained, trained)), 1), autoencoders.factor(vae) * self._config["patch_size"]
        if size.height % edge or size.width % edge:
            raise OptionError("pixels", f"must be multiples of the {edge} of a patch, got {list(size[:2])}")
        return size

    def sample_shape(self, vae: nn.Module, size: Size) -> tuple[int, ...]:
        """(16, H / 8, W / 8) for the released models."""
        factor = autoencoders.factor(vae)
        return (self._config["in_channels"], size.height // factor, size.width // factor)

    def encode_prompts(self, pipeline: Any, prompts: Sequence[str], negative: str | None, size: Size) -> Condition:
        """Sequence and pooled embeddings of all encoders."""
        texts = list(prompts) if negative is None else [negative] * len(prompts)
        text, _, pooled, _ = pipeline.encode_prompt(texts, None, None, do_classifier_free_guidance=False)
        return {"encoder_hidden_states": text, "pooled_projections": pooled}

    def condition_shapes(self, tokens: int) -> dict[str, tuple[int, ...]]:
        """The CLIP encoders' 77 tokens followed by T5's 256, and what the CLIP encoders pool."""
        text = (tokens + (self.text_length or 256), self._config["joint_attention_dim"])
        return {"encoder_hidden_states": text, "pooled_projections": (self._config["pooled_projection_dim"],)}

    def encode_media(self, vae: nn.Module, media: Tensor) -> Tensor:
        """The posterior's mean, shifted and scaled."""
        return autoencoders.encode(vae, media)

    def decode(self, vae: nn.Module, latents: Tensor) -> Tensor:
        """[B, 3, H, W]."""
        return autoencoders.decode(vae, latents)

    def features(self, network: nn.Module) -> Features:
        """The middle block's, of the image tokens."""
        width = self._config["num_attention_heads"] * self._config["attention_head_dim"]
        blocks = network.transformer_blocks
        return Features(blocks[len(blocks) // 2], width, 2)

    def time_embeddings(self, network: nn.Module) -> Sequence[Features]:
        """The one that all blocks share, before the text's is added."""
        embedder = network.time_text_embed.timestep_embedder
        return [Features(embedder, embedder.linear_2.out_features, -1)]

    def sampling(self, prompt: str, size: Size) -> dict[str, Any]:
        """Without guidance, which the student has learnt."""
        return {"prompt": prompt, "height": size.height, "width": size.width, "guidance_scale": 1.0}
