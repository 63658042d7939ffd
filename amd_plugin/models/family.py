"""What the host must know about a diffusers pipeline to distil it, and the two ways in which it calls a network.

A family is one small class with one instance per loaded pipeline, found by the pipeline's class name through the hook
``distill_families``. It owns no weights: networks, autoencoders and text encoders are handed to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor, nn

Condition = dict[str, Tensor]
Network = Callable[..., Any]


class Size(NamedTuple):
    """Size of a decoded sample: height and width in pixels, number of frames (1 for images)."""

    height: int
    width: int
    frames: int


class Features(NamedTuple):
    """Location of features in a network.

    Attributes:
        module: module whose output they are.
        channels: number of channels.
        dim: dimension of the channels.
    """

    module: nn.Module
    channels: int
    dim: int


class Elsewhere(NamedTuple):
    """An adapter for the programs that keep the names of a model's original code: ComfyUI, the webuis and their relatives.

    Attributes:
        architecture: the model's name in the ModelSpec metadata that those programs read.
        base: its name in kohya's metadata (``ss_base_model_version``).
        layers: the tensors under the names that those programs read; None where they read the names of diffusers.
    """

    architecture: str
    base: str
    layers: dict[str, Tensor] | None


class Family(Protocol):
    """One class of diffusers pipelines. B samples of latents [B, C, ...].

    Args:
        index: contents of the pipeline's ``model_index.json``.
        config: config of the network.

    Attributes:
        pipeline: class name of the pipeline.
        component: name of the distilled part, ``unet`` or ``transformer``.
        network: class name of the distilled part.
        autoencoder: class name of the part ``vae``.
        video: whether samples have frames.
        scales_input: whether the pipeline calls its scheduler's ``scale_model_input``.
        rounds_frames_up: whether the pipeline makes more frames than it is asked for, unless it is given latents; a family
            without the attribute does not.
        fp32_autoencoder: whether the pipeline decodes latents of another precision with an autoencoder in fp32; the card then
            loads it so; a family without the attribute does not.
        token_limits: number of tokens that encoders read, by the name of the tokenizer, where that is neither `text_length` nor
            the tokenizer's own limit; a family without the attribute has none.
        text_length: number of tokens that prompts are padded to, set before anything is encoded; None leaves it to the
            tokenizer.
    """

    pipeline: ClassVar[str]
    component: ClassVar[str]
    network: ClassVar[str]
    autoencoder: ClassVar[str]
    video: ClassVar[bool]
    scales_input: ClassVar[bool]
    text_length: int | None

    def __init__(self, index: Mapping[str, Any], config: Mapping[str, Any]):
        """Raises InputError for a pipeline of the class that cannot be distilled."""
        ...

    def call(self, network: Network, x_t: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        """The network's raw output [B, C, ...] for `x_t` [B, C, ...] at `timestep` [B] under `condition`."""
        ...

    def size(self, vae: nn.Module, pixels: tuple[int, int] | None, frames: int | None) -> Size:
        """The size of `pixels` (height, width) and `frames`, by default the one the pipeline was trained at.

        Raises:
            OptionError: for a size that the network cannot generate.
        """
        ...

    def sample_shape(self, vae: nn.Module, size: Size) -> tuple[int, ...]:
        """Shape of one sample's latents."""
        ...

    def encode_prompts(self, pipeline: Any, prompts: Sequence[str], negative: str | None, size: Size) -> Condition:
        """Conditions of `prompts`, from a pipeline that holds only its text parts.

        Args:
            pipeline: pipeline with tokenizers and text encoders.
            prompts: one prompt per sample.
            negative: negative prompt, for the conditions of the unconditional branch ("" where the recipe has none); None for
                those of the conditional branch.
            size: size of the decoded samples.
        """
        ...

    def condition_shapes(self, tokens: int) -> dict[str, tuple[int, ...]]:
        """Shapes of one sample's condition for a prompt of `tokens` tokens. Used by ``amd-plugin plan`` only."""
        ...

    def encode_media(self, vae: nn.Module, media: Tensor) -> Tensor:
        """Latents [B, C, ...], scaled as the network takes them, of media [B, 3, (T,) H, W] in [-1, 1]."""
        ...

    def decode(self, vae: nn.Module, latents: Tensor) -> Tensor:
        """Media [B, 3, (T,) H, W] in [0, 1] of latents [B, C, ...]; differentiable."""
        ...

    def features(self, network: nn.Module) -> Features:
        """Features for a discriminator, from the middle of the network."""
        ...

    def time_embeddings(self, network: nn.Module) -> Sequence[Features]:
        """Embeddings of the timestep, one or one per layer. Used by ``model.rung_conditioning`` only."""
        ...

    def sampling(self, prompt: str, size: Size) -> dict[str, Any]:
        """Arguments, beside the number of steps, with which the exported pipeline samples as in training."""
        ...

    def adapter_elsewhere(self, layers: Mapping[str, Tensor]) -> Elsewhere:
        """The adapter `layers` (``NAME.lora_A.weight``, ``NAME.lora_B.weight``; alpha equals the rank) for other programs.

        A family without it exports its adapters for diffusers only.
        """
        ...


class SupportsCall(Protocol):
    """Anything that calls a network for latents: a family or a `Caller`."""

    def call(self, network: Network, x_t: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        """The raw output [B, C, ...] at `x_t` [B, C, ...] and `timestep` [B] under `condition`."""
        ...


def middle_block(blocks: Any, config: Mapping[str, Any]) -> Features:
    """The output [B, N, D] of the middle one of a transformer's `blocks`."""
    return Features(blocks[len(blocks) // 2], config["num_attention_heads"] * config["attention_head_dim"], 2)


def time_embedding(embedder: Any) -> Features:
    """The output [..., D] of diffusers' `TimestepEmbedding`."""
    return Features(embedder, embedder.linear_2.out_features, -1)


def pair(
    caller: SupportsCall, network: Network, x_t: Tensor, timestep: Tensor, cond: Condition, uncond: Condition
) -> list[Tensor]:
    """Conditional and unconditional outputs [B, C, ...], from one call of twice the batch."""
    both = {name: torch.cat((cond[name], uncond[name])) for name in cond}
    twice = x_t.repeat(2, *[1] * (x_t.dim() - 1))
    return list(caller.call(network, twice, timestep.repeat(2), both).chunk(2))


def guided(
    caller: SupportsCall, network: Network, x_t: Tensor, timestep: Tensor, cond: Condition, uncond: Condition, scale: float
) -> Tensor:
    """Output [B, C, ...] with classifier-free guidance ``uncond + scale (cond - uncond)``."""
    if scale == 1:
        return caller.call(network, x_t, timestep, cond)
    conditional, unconditional = pair(caller, network, x_t, timestep, cond, uncond)
    return unconditional + scale * (conditional - unconditional)


class Caller:
    """A family's calls, in the precision of the network that is called.

    Args:
        family: family of the networks.
        autocast: factory of the mixed-precision context, such as `Accelerator.autocast`. A network whose attribute
            ``autocast`` is False is called outside of it.
    """

    def __init__(self, family: SupportsCall, autocast: Callable[[], Any]):
        self._family, self._autocast = family, autocast

    def call(self, network: Any, x_t: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        """The raw output [B, ...]. Timesteps keep their precision: bf16 cannot represent 999."""
        inputs = {name: value.to(network.dtype) if value.is_floating_point() else value for name, value in condition.items()}
        with self._autocast() if getattr(network, "autocast", True) else nullcontext():
            output: Tensor = self._family.call(network, x_t.to(network.dtype), timestep, inputs)
        return output


def down_up_alpha(name: str, layer: str, weight: Tensor) -> dict[str, Tensor]:
    """Kohya's tensors of the LoRA matrix `weight`, ``lora_A`` or ``lora_B`` by `layer`, of the layer called `name`."""
    if layer == "lora_A":
        return {f"{name}.lora_down.weight": weight, f"{name}.alpha": torch.tensor(float(len(weight)), dtype=weight.dtype)}
    return {f"{name}.lora_up.weight": weight}
