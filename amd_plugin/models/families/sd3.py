"""Stable Diffusion 3 and 3.5: a multimodal transformer on image latents that predicts the flow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from amd_plugin.errors import OptionError
from amd_plugin.models import autoencoders
from amd_plugin.models.family import Condition, Elsewhere, Features, Network, Size, middle_block, time_embedding


class SD3:
    """`StableDiffusion3Pipeline` with its three text encoders."""

    pipeline: ClassVar[str] = "StableDiffusion3Pipeline"
    component: ClassVar[str] = "transformer"
    network: ClassVar[str] = "SD3Transformer2DModel"
    autoencoder: ClassVar[str] = "AutoencoderKL"
    video: ClassVar[bool] = False
    scales_input: ClassVar[bool] = False
    # The pipeline's default for T5; the CLIP encoders read what their tokenizers do.
    token_limits: ClassVar[dict[str, int]] = {"tokenizer_3": 256}

    encode_media = staticmethod(autoencoders.encode)
    decode = staticmethod(autoencoders.decode)

    def __init__(self, index: Mapping[str, Any], config: Mapping[str, Any]):
        self._config = config
        self.text_length: int | None = None

    def call(self, network: Network, x_t: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        """Output [B, 16, h, w]."""
        text, pooled = condition["encoder_hidden_states"], condition["pooled_projections"]
        output: Tensor = network(x_t, encoder_hidden_states=text, pooled_projections=pooled, timestep=timestep).sample
        return output

    def size(self, vae: nn.Module, pixels: tuple[int, int] | None, frames: int | None) -> Size:
        """By default a square of the transformer's training size."""
        if frames not in (None, 1):
            raise OptionError("frames", f"a {self.pipeline} makes images, got {frames}")
        factor = autoencoders.factor(vae)
        trained, patch = self._config["sample_size"] * factor, self._config["patch_size"] * factor
        height, width = pixels or (trained, trained)
        if height % patch or width % patch:
            raise OptionError("pixels", f"must be multiples of the {patch} of a patch, got {[height, width]}")
        longest = self._config["pos_embed_max_size"] * patch
        if max(height, width) > longest:
            raise OptionError("pixels", f"this transformer makes images of up to {[longest, longest]}, got {[height, width]}")
        return Size(height, width, 1)

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
        """The CLIP encoders' 77 tokens followed by T5's 256, and the CLIP encoders' pooled embeddings."""
        text = (tokens + (self.text_length or 256), self._config["joint_attention_dim"])
        return {"encoder_hidden_states": text, "pooled_projections": (self._config["pooled_projection_dim"],)}

    def features(self, network: nn.Module) -> Features:
        """Image tokens after the middle block."""
        return middle_block(network.transformer_blocks, self._config)

    def time_embeddings(self, network: nn.Module) -> Sequence[Features]:
        """The one that all blocks share, before the pooled text embedding is added."""
        shared: Any = network.time_text_embed
        return [time_embedding(shared.timestep_embedder)]

    def sampling(self, prompt: str, size: Size) -> dict[str, Any]:
        """No guidance: the student has learnt the guided distribution."""
        return {"prompt": prompt, "height": size.height, "width": size.width, "guidance_scale": 1.0}

    def adapter_elsewhere(self, layers: Mapping[str, Tensor]) -> Elsewhere:
        """ComfyUI reads diffusers' names: its own network has queries, keys and values in one matrix."""
        return Elsewhere("stable-diffusion-3/lora", "sd3", None)
