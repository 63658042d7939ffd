"""Stable Diffusion XL: a UNet conditioned on two text encoders, a pooled embedding and the picture's size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from amd_plugin.errors import InputError, OptionError
from amd_plugin.models import autoencoders
from amd_plugin.models.family import Condition, Features, Network, Size


class SDXL:
    """`StableDiffusionXLPipeline`; predicts noise or v, as its scheduler says."""

    pipeline: ClassVar[str] = "StableDiffusionXLPipeline"
    component: ClassVar[str] = "unet"
    network: ClassVar[str] = "UNet2DConditionModel"
    autoencoder: ClassVar[str] = "AutoencoderKL"
    video: ClassVar[bool] = False
    scales_input: ClassVar[bool] = True

    def __init__(self, index: Mapping[str, Any], config: Mapping[str, Any]):
        if config["addition_embed_type"] != "text_time":
            what = f"addition_embed_type 'text_time', got {config['addition_embed_type']!r}"
            raise InputError(f"model.path: the UNet of a {self.pipeline} has {what}")
        if config.get("time_cond_proj_dim") is not None:
            raise InputError("model.path: this UNet is guidance-distilled (time_cond_proj_dim is set) and cannot be a teacher")
        self._config = config
        self.text_length: int | None = None

    def call(self, network: Network, x_t: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        """[B, 4, H / 8, W / 8]."""
        added = {name: condition[name] for name in ("text_embeds", "time_ids")}
        text = condition["encoder_hidden_states"]
        return network(x_t, timestep, encoder_hidden_states=text, added_cond_kwargs=added).sample

    def size(self, vae: nn.Module, pixels: tuple[int, int] | None, frames: int | None) -> Size:
        """Square of the UNet's training size unless given."""
        if frames is not None and frames != 1:
            raise OptionError("frames", f"a {self.pipeline} makes images, got {frames}")
        factor = autoencoders.factor(vae)
        trained = self._config["sample_size"] * factor
        size = Size(*(pixels or (trained, trained)), 1)
        # The pipeline itself refuses anything but multiples of 8.
        coarsest = max(8, factor * 2 ** (len(self._config["block_out_channels"]) - 1))
        if size.height % coarsest or size.width % coarsest:
            raise OptionError("pixels", f"must be multiples of {coarsest} for this UNet, got {list(size[:2])}")
        return size

    def sample_shape(self, vae: nn.Module, size: Size) -> tuple[int, ...]:
        """(4, H / 8, W / 8) for the released model."""
        factor = autoencoders.factor(vae)
        return (self._config["in_channels"], size.height // factor, size.width // factor)

    def encode_prompts(self, pipeline: Any, prompts: Sequence[str], negative: str | None, size: Size) -> Condition:
        """Sequence and pooled embeddings; size and crop ids as the pipeline sets them for an uncropped picture."""
        ids = torch.tensor([[size.height, size.width, 0, 0, size.height, size.width]])
        # Left to itself the pipeline zeroes an absent negative prompt, where its config says so; "" would be encoded.
        cond, uncond, pooled, pooled_uncond = pipeline.encode_prompt(
            list(prompts), num_images_per_prompt=1, do_classifier_free_guidance=negative is not None,
            negative_prompt=negative or None,
        )  # fmt: skip
        text, pooled = (cond, pooled) if negative is None else (uncond, pooled_uncond)
        return {"encoder_hidden_states": text, "text_embeds": pooled, "time_ids": ids.repeat(len(prompts), 1)}

    def condition_shapes(self, tokens: int) -> dict[str, tuple[int, ...]]:
        """The first encoder's states beside the second's, the second's pooled, and six numbers for the picture's size."""
        pooled = self._config["projection_class_embeddings_input_dim"] - 6 * self._config["addition_time_embed_dim"]
        return {
            "encoder_hidden_states": (tokens, self._config["cross_attention_dim"]),
            "text_embeds": (pooled,),
            "time_ids": (6,),
        }

    def encode_media(self, vae: nn.Module, media: Tensor) -> Tensor:
        """The posterior's mean, scaled."""
        return autoencoders.encode(vae, media)

    def decode(self, vae: nn.Module, latents: Tensor) -> Tensor:
        """[B, 3, H, W]."""
        return autoencoders.decode(vae, latents)

    def features(self, network: nn.Module) -> Features:
        """The middle block's."""
        return Features(network.mid_block, self._config["block_out_channels"][-1], 1)

    def time_embeddings(self, network: nn.Module) -> Sequence[Features]:
        """The one that all blocks share, before the picture's size is added."""
        embedder = network.time_embedding
        return [Features(embedder, embedder.linear_2.out_features, -1)]

    def sampling(self, prompt: str, size: Size) -> dict[str, Any]:
        """Without guidance, which the student has learnt."""
        return {"prompt": prompt, "height": size.height, "width": size.width, "guidance_scale": 1.0}
