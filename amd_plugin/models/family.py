"""What the host must know about a diffusers pipeline to distil it, and the two calls it makes of every network.

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
    """What a sample is when it is decoded: pixels, and frames of a video (1 for images)."""

    height: int
    width: int
    frames: int


class Features(NamedTuple):
    """Where a network's features are: the output of `module`, with `channels` in dimension `dim`."""

    module: nn.Module
    channels: int
    dim: int


class Family(Protocol):
    """One class of diffusers pipelines. B samples of latents [B, C, ...].

    Args:
        index: what the pipeline's ``model_index.json`` says.
        config: the network's own config.

    Attributes:
        pipeline: the pipeline's class name.
        component: the part that is distilled, ``unet`` or ``transformer``.
        network: its class name.
        autoencoder: class name of the part ``vae``.
        video: whether samples have frames.
        scales_input: the pipeline calls its scheduler's ``scale_model_input``.
        text_length: tokens prompts are padded to, None where the tokenizer decides; set before anything is encoded.
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
        """The raw output [B, C, ...] at `x_t` [B, C, ...] and `timestep` [B] under `condition`."""
        ...

    def size(self, vae: nn.Module, pixels: tuple[int, int] | None, frames: int | None) -> Size:
        """The size asked for, or the one the pipeline was trained at; raises OptionError where the network cannot make it."""
        ...

    def sample_shape(self, vae: nn.Module, size: Size) -> tuple[int, ...]:
        """Shape of one sample's latents."""
        ...

    def encode_prompts(self, pipeline: Any, prompts: Sequence[str], negative: str | None, size: Size) -> Condition:
        """Conditions of `prompts` by a pipeline that holds only its text parts.

        With `negative` not None, of the unconditional branch: for the negative prompt, "" where the recipe gives none.
        """
        ...

    def condition_shapes(self, tokens: int) -> dict[str, tuple[int, ...]]:
        """Shapes of one sample's condition for prompts of `tokens` tokens. Needed by ``amd-plugin plan`` only."""
        ...

    def encode_media(self, vae: nn.Module, media: Tensor) -> Tensor:
        """Latents [B, C, ...] as the network sees them, of media [B, 3, (T,) H, W] in [-1, 1]."""
        ...

    def decode(self, vae: nn.Module, latents: Tensor) -> Tensor:
        """Media [B, 3, (T,) H, W] in [0, 1] of latents [B, C, ...]; differentiable."""
        ...

    def features(self, network: nn.Module) -> Features:
        """Where a discriminator looks: deep in the middle of the network."""
        ...

    def time_embeddings(self, network: nn.Module) -> Sequence[Features]:
        """Where the network embeds the time, once or once per layer. Needed by ``model.rung_conditioning`` only."""
        ...

    def sampling(self, prompt: str, size: Size) -> dict[str, Any]:
        """Arguments, beside the number of steps, with which the exported pipeline samples as the student was trained."""
        ...


def pair(family: Any, network: Network, x_t: Tensor, timestep: Tensor, cond: Condition, uncond: Condition) -> list[Tensor]:
    """[conditional, unconditional] outputs from one call of twice the batch."""
    joined = {name: torch.cat((cond[name], uncond[name])) for name in cond}
    twice = x_t.repeat(2, *[1] * (x_t.dim() - 1))
    return list(family.call(network, twice, timestep.repeat(2), joined).chunk(2))


def guided(
    family: Any, network: Network, x_t: Tensor, timestep: Tensor, cond: Condition, uncond: Condition, scale: float
) -> Tensor:
    """Output with classifier-free guidance ``uncond + scale (cond - uncond)``."""
    if scale == 1:
        return family.call(network, x_t, timestep, cond)
    with_prompt, without = pair(family, network, x_t, timestep, cond, uncond)
    return without + scale * (with_prompt - without)


class Caller:
    """A family's calls in the precision of the network that is called.

    Args:
        family: what to call as.
        autocast: makes the context of mixed precision, `Accelerator.autocast`, for all networks that do not decline it.
    """

    def __init__(self, family: Any, autocast: Callable[[], Any]):
        self._family, self._autocast = family, autocast

    def call(self, network: Any, x_t: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        """The raw output [B, ...]; timesteps keep their precision, 999 is no bf16 number."""
        cast = {name: value.to(network.dtype) if value.is_floating_point() else value for name, value in condition.items()}
        with self._autocast() if getattr(network, "autocast", True) else nullcontext():
            output: Tensor = self._family.call(network, x_t.to(network.dtype), timestep, cast)
        return output
