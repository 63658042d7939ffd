"""Wan2.1 text-to-video (1.3B, 14B) and Wan2.2-5B: a transformer on video latents that predicts the flow."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from amd_plugin.errors import InputError, OptionError
from amd_plugin.models.family import Condition, Elsewhere, Features, Network, Size, down_up_alpha, middle_block, time_embedding

# diffusers' names of parts, as patterns, and those of the original code (github.com/Wan-Video/Wan2.1, wan/modules/model.py).
ORIGINAL_NAMES = {
    r"\battn1\b": "self_attn", r"\battn2\b": "cross_attn", r"\bto_([qkv])\b": r"\1", r"\bto_out\.0\b": "o",
    r"\badd_([kv])_proj\b": r"\1_img", r"\bffn\.net\.0\.proj\b": "ffn.0", r"\bffn\.net\.2\b": "ffn.2",
    r"^condition_embedder\.(time|text)_embedder\.linear_1\b": r"\1_embedding.0",
    r"^condition_embedder\.(time|text)_embedder\.linear_2\b": r"\1_embedding.2",
    r"^condition_embedder\.time_proj\b": "time_projection.1", r"^proj_out\b": "head.head",
}  # fmt: skip


class Wan:
    """`WanPipeline` with one transformer. Latents are [C, T, h, w]."""

    pipeline: ClassVar[str] = "WanPipeline"
    component: ClassVar[str] = "transformer"
    network: ClassVar[str] = "WanTransformer3DModel"
    autoencoder: ClassVar[str] = "AutoencoderKLWan"
    video: ClassVar[bool] = True
    scales_input: ClassVar[bool] = False
    fp32_autoencoder: ClassVar[bool] = True

    def __init__(self, index: Mapping[str, Any], config: Mapping[str, Any]):
        if (index.get("transformer_2") or [None])[0] is not None:
            raise InputError(
                "model.path: this Wan2.2 pipeline has two experts (transformer and transformer_2); only pipelines with one "
                "transformer can be distilled: Wan2.1, or Wan2.2-TI2V-5B"
            )
        if config.get("image_dim") is not None:
            raise InputError(
                "model.path: this transformer is conditioned on images (image_dim is set); take a text-to-video one"
            )
        self._config = config
        # The pipeline's default in sampling; its `encode_prompt` alone would pad to 226.
        self.text_length: int | None = 512
        # Wan2.2-5B gives every token a timestep of its own, all the same in text-to-video.
        self._timestep_per_token = bool(index.get("expand_timesteps"))
        self.rounds_frames_up = False

    def call(self, network: Network, x_t: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        """Output [B, C, T, h, w]."""
        if self._timestep_per_token:
            tokens = x_t[0, 0].numel() // math.prod(self._config["patch_size"])
            timestep = timestep[:, None].expand(-1, tokens)
        output: Tensor = network(x_t, timestep=timestep, encoder_hidden_states=condition["encoder_hidden_states"]).sample
        return output

    def size(self, vae: nn.Module, pixels: tuple[int, int] | None, frames: int | None) -> Size:
        """By default 480 x 832 pixels and 81 frames, as in the pipeline."""
        height, width = pixels or (480, 832)
        size = Size(height, width, frames or 81)
        spatial, temporal = _factors(vae)
        # For an autoencoder that keeps all frames the pipeline takes any number of frames for one too few.
        self.rounds_frames_up = temporal == 1
        _, *patch = self._config["patch_size"]
        # The pipeline itself refuses anything but multiples of 16, and rounds to whole patches.
        edges = [math.lcm(16, spatial * edge) for edge in patch]
        if size.height % edges[0] or size.width % edges[1]:
            raise OptionError("pixels", f"must be multiples of {edges}, got {list(size[:2])}")
        if (size.frames - 1) % temporal:
            raise OptionError("frames", f"must be 1 more than a multiple of {temporal}, got {size.frames}")
        # A table of positions ends at this number of patches along each axis.
        longest = self._config["rope_max_seq_len"]
        frames = longest * self._config["patch_size"][0]
        if (size.frames - 1) // temporal + 1 > frames:
            most = (frames - 1) * temporal + 1
            raise OptionError("frames", f"this transformer makes videos of up to {most} frames, got {size.frames}")
        most_pixels = [longest * spatial * edge for edge in patch]
        if size.height > most_pixels[0] or size.width > most_pixels[1]:
            raise OptionError("pixels", f"this transformer makes videos of up to {most_pixels}, got {list(size[:2])}")
        return size

    def sample_shape(self, vae: nn.Module, size: Size) -> tuple[int, ...]:
        """(16, 21, 60, 104) for Wan2.1 at its default size."""
        spatial, temporal = _factors(vae)
        frames = (size.frames - 1) // temporal + 1
        return (self._config["in_channels"], frames, size.height // spatial, size.width // spatial)

    def encode_prompts(self, pipeline: Any, prompts: Sequence[str], negative: str | None, size: Size) -> Condition:
        """Embeddings [B, L, D], padded with zeros to the length that the pipeline uses in sampling."""
        texts = list(prompts) if negative is None else [negative] * len(prompts)
        text, _ = pipeline.encode_prompt(texts, do_classifier_free_guidance=False, max_sequence_length=self.text_length)
        return {"encoder_hidden_states": text}

    def condition_shapes(self, tokens: int) -> dict[str, tuple[int, ...]]:
        """The text encoder's states."""
        return {"encoder_hidden_states": (tokens, self._config["text_dim"])}

    def encode_media(self, vae: nn.Module, media: Tensor) -> Tensor:
        """The posterior's mean, standardised per channel."""
        mean, std = _statistics(vae, media)
        autoencoder: Any = vae
        latents: Tensor = (autoencoder.encode(media).latent_dist.mean - mean) / std
        return latents

    def decode(self, vae: nn.Module, latents: Tensor) -> Tensor:
        """Media [B, 3, T, H, W] in [0, 1]."""
        mean, std = _statistics(vae, latents)
        autoencoder: Any = vae
        media: Tensor = (autoencoder.decode(latents * std + mean).sample / 2 + 0.5).clamp(0, 1)
        return media

    def features(self, network: nn.Module) -> Features:
        """Tokens after the middle block."""
        return middle_block(network.blocks, self._config)

    def time_embeddings(self, network: nn.Module) -> Sequence[Features]:
        """The one that all blocks share; it has an entry per token where tokens have timesteps of their own."""
        shared: Any = network.condition_embedder
        return [time_embedding(shared.time_embedder)]

    def sampling(self, prompt: str, size: Size) -> dict[str, Any]:
        """No guidance: the student has learnt the guided distribution."""
        arguments = {"prompt": prompt, "height": size.height, "width": size.width, "num_frames": size.frames}
        return {**arguments, "guidance_scale": 1.0, "max_sequence_length": self.text_length}

    def adapter_elsewhere(self, layers: Mapping[str, Tensor]) -> Elsewhere:
        """The names of the original code, under ``diffusion_model.``."""
        named: dict[str, Tensor] = {}
        for key, value in layers.items():
            part, layer, _ = key.rsplit(".", 2)
            for pattern, original in ORIGINAL_NAMES.items():
                part = re.sub(pattern, original, part)
            named |= down_up_alpha(f"diffusion_model.{part}", layer, value)
        return Elsewhere("wan2.1/lora", "wan2.1", named)


def _factors(vae: nn.Module) -> tuple[int, int]:
    """Pixels per latent in space, and frames per latent in time."""
    config: Any = vae.config
    return config.scale_factor_spatial, config.scale_factor_temporal


def _statistics(vae: nn.Module, like: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [1, C, 1, 1, 1] of the autoencoder's latents."""
    config: Any = vae.config
    mean, std = (torch.tensor(config[name]).reshape(1, -1, 1, 1, 1).to(like) for name in ("latents_mean", "latents_std"))
    return mean, std
