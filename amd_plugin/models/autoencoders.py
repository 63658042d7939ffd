"""Between pixels and the latents a network sees, for autoencoders of images; those of videos differ per family."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def factor(vae: nn.Module) -> int:
    """Pixels per latent, in each direction."""
    return int(2 ** (len(vae.config.block_out_channels) - 1))


def encode(vae: nn.Module, media: Tensor) -> Tensor:
    """Latents [B, C, h, w] of images [B, 3, H, W] in [-1, 1]: the posterior's mean, shifted and scaled."""
    shift, scale = _statistics(vae)
    return (vae.encode(media).latent_dist.mean - shift.to(media)) * scale.to(media)


def decode(vae: nn.Module, latents: Tensor) -> Tensor:
    """Images [B, 3, H, W] in [0, 1] of latents [B, C, h, w]; differentiable.

    An `AutoencoderTiny` in place of the pipeline's own autoencoder takes the network's latents as they are: its config says so.
    """
    shift, scale = _statistics(vae)
    return (vae.decode(latents / scale.to(latents) + shift.to(latents)).sample / 2 + 0.5).clamp(0, 1)


def _statistics(vae: nn.Module) -> tuple[Tensor, Tensor]:
    """(shift, scale), each [1, C or 1, 1, 1], of ``network's latents = (autoencoder's latents - shift) * scale``."""
    config = vae.config
    scale = torch.tensor(float(config.scaling_factor)).reshape(1, 1, 1, 1)
    if config.get("latents_mean") is None or config.get("latents_std") is None:
        return torch.tensor(float(config.get("shift_factor") or 0.0)).reshape(1, 1, 1, 1), scale
    mean, std = (torch.tensor(config[name]).reshape(1, -1, 1, 1) for name in ("latents_mean", "latents_std"))
    return mean, scale / std
