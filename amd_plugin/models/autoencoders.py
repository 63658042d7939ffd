"""Pixels to latents and back, for autoencoders of images; autoencoders of videos differ per family."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def factor(vae: Any) -> int:
    """Pixels per latent along an edge; `vae` is an autoencoder of diffusers."""
    return int(2 ** (len(vae.config.block_out_channels) - 1))


def encode(vae: Any, media: Tensor) -> Tensor:
    """Latents [B, C, h, w] of images [B, 3, H, W] in [-1, 1]: the posterior's mean, shifted and scaled."""
    shift, scale = _statistics(vae)
    latents: Tensor = (vae.encode(media).latent_dist.mean - shift.to(media)) * scale.to(media)
    return latents


def decode(vae: Any, latents: Tensor) -> Tensor:
    """Images [B, 3, H, W] in [0, 1] of latents [B, C, h, w]; differentiable.

    An `AutoencoderTiny` may replace the pipeline's own autoencoder: its config has scale 1 and shift 0.
    """
    shift, scale = _statistics(vae)
    media: Tensor = (vae.decode(latents / scale.to(latents) + shift.to(latents)).sample / 2 + 0.5).clamp(0, 1)
    return media


def _statistics(vae: Any) -> tuple[Tensor, Tensor]:
    """(shift, scale), each [1, C or 1, 1, 1], in ``network's latents = (autoencoder's latents - shift) * scale``."""
    config = vae.config
    scale = torch.tensor(float(config.scaling_factor)).reshape(1, 1, 1, 1)
    if config.get("latents_mean") is None or config.get("latents_std") is None:
        return torch.tensor(float(config.get("shift_factor") or 0.0)).reshape(1, 1, 1, 1), scale
    mean, std = (torch.tensor(config[name]).reshape(1, -1, 1, 1) for name in ("latents_mean", "latents_std"))
    return mean, scale / std
