"""Stable Diffusion XL: a UNet conditioned on two text encoders, a pooled embedding and the picture's size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers.utils.state_dict_utils import convert_state_dict_to_kohya
from torch import Tensor, nn

from amd_plugin.errors import InputError, OptionError
from amd_plugin.models import autoencoders
from amd_plugin.models.family import Condition, Elsewhere, Features, Network, Size, time_embedding


class SDXL:
    """`StableDiffusionXLPipeline`; its scheduler defines whether the UNet predicts the noise or v."""

    pipeline: ClassVar[str] = "StableDiffusionXLPipeline"
    component: ClassVar[str] = "unet"
    network: ClassVar[str] = "UNet2DConditionModel"
    autoencoder: ClassVar[str] = "AutoencoderKL"
    video: ClassVar[bool] = False
    scales_input: ClassVar[bool] = True

    encode_media = staticmethod(autoencoders.encode)
    decode = staticmethod(autoencoders.decode)

    def __init__(self, index: Mapping[str, Any], config: Mapping[str, Any]):
        if config["addition_embed_type"] != "text_time":
            message = f"addition_embed_type 'text_time', got {config['addition_embed_type']!r}"
            raise InputError(f"model.path: the UNet of a {self.pipeline} has {message}")
        if config.get("time_cond_proj_dim") is not None:
            raise InputError("model.path: this UNet is guidance-distilled (time_cond_proj_dim is set) and cannot be a teacher")
        self._config = config
        self.text_length: int | None = None

    def call(self, network: Network, x_t: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        """Output [B, 4, H / 8, W / 8]."""
        added = {name: condition[name] for name in ("text_embeds", "time_ids")}
        text = condition["encoder_hidden_states"]
        output: Tensor = network(x_t, timestep, encoder_hidden_states=text, added_cond_kwargs=added).sample
        return output

    def size(self, vae: nn.Module, pixels: tuple[int, int] | None, frames: int | None) -> Size:
        """By default a square of the UNet's training size."""
        if frames not in (None, 1):
            raise OptionError("frames", f"a {self.pipeline} makes images, got {frames}")
        factor = autoencoders.factor(vae)
        trained = self._config["sample_size"] * factor
        height, width = pixels or (trained, trained)
        # The pipeline itself refuses anything but multiples of 8.
        coarsest = max(8, factor * 2 ** (len(self._config["block_out_channels"]) - 1))
        if height % coarsest or width % coarsest:
            raise OptionError("pixels", f"must be multiples of {coarsest} for this UNet, got {[height, width]}")
        return Size(height, width, 1)

    def sample_shape(self, vae: nn.Module, size: Size) -> tuple[int, ...]:
        """(4, H / 8, W / 8) for the released model."""
        factor = autoencoders.factor(vae)
        return (self._config["in_channels"], size.height // factor, size.width // factor)

    def encode_prompts(self, pipeline: Any, prompts: Sequence[str], negative: str | None, size: Size) -> Condition:
        """Sequence and pooled embeddings; size and crop ids as the pipeline sets them for an uncropped picture."""
        ids = torch.tensor([[size.height, size.width, 0, 0, size.height, size.width]])
        # Some pipelines replace an absent negative prompt by zeros (force_zeros_for_empty_prompt); "" would be encoded.
        cond, uncond, pooled, pooled_uncond = pipeline.encode_prompt(
            list(prompts), num_images_per_prompt=1, do_classifier_free_guidance=negative is not None,
            negative_prompt=negative or None,
        )  # fmt: skip
        text, pooled = (cond, pooled) if negative is None else (uncond, pooled_uncond)
        return {"encoder_hidden_states": text, "text_embeds": pooled, "time_ids": ids.repeat(len(prompts), 1)}

    def condition_shapes(self, tokens: int) -> dict[str, tuple[int, ...]]:
        """The states of both encoders side by side, the second's pooled embedding, and six numbers for the picture's size."""
        pooled = self._config["projection_class_embeddings_input_dim"] - 6 * self._config["addition_time_embed_dim"]
        return {
            "encoder_hidden_states": (tokens, self._config["cross_attention_dim"]),
            "text_embeds": (pooled,),
            "time_ids": (6,),
        }

    def features(self, network: nn.Module) -> Features:
        """The feature map after the middle block."""
        middle: Any = network.mid_block
        return Features(middle, self._config["block_out_channels"][-1], 1)

    def time_embeddings(self, network: nn.Module) -> Sequence[Features]:
        """The one that all blocks share, before the embedding of the picture's size is added."""
        return [time_embedding(network.time_embedding)]

    def sampling(self, prompt: str, size: Size) -> dict[str, Any]:
        """No guidance: the student has learnt the guided distribution."""
        return {"prompt": prompt, "height": size.height, "width": size.width, "guidance_scale": 1.0}

    def adapter_elsewhere(self, layers: Mapping[str, Tensor]) -> Elsewhere:
        """Kohya's names, which keep diffusers' names of the UNet's parts."""
        kohya: dict[str, Tensor] = convert_state_dict_to_kohya({f"unet.{name}": value for name, value in layers.items()})
        # diffusers writes alphas as integers, which some loaders would multiply weights with.
        named = {name: value if value.is_floating_point() else value.float() for name, value in kohya.items()}
        return Elsewhere("stable-diffusion-xl-v1-base/lora", "sdxl_base_v1-0", named)
