"""A discriminator: a small head on features in the middle of the fake score, as in DMD2."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from amd_plugin.models.family import Condition, Features


class Discriminator(nn.Module):
    """Logits from a network's features, position by position and averaged; one class for feature maps, tokens and vectors.

    Args:
        channels: of the features.
        dim: which of their dimensions are channels.
        hidden: units.
    """

    def __init__(self, channels: int, dim: int, hidden: int = 256):
        super().__init__()
        self._dim = dim
        self.head = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, hidden), nn.SiLU(), nn.Linear(hidden, 1))

    def forward(self, features: Tensor) -> Tensor:
        """Logits [B], positive for real, of features [B, ...]."""
        return self.head(features.float().movedim(self._dim, -1)).flatten(1).mean(1)


def features_of(family: Any, role: Any, where: Features, x_t: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
    """What comes out of the module `where` names when `role` sees x_t [B, ...] at `timestep` [B]."""
    caught: list[Any] = []
    hook = where.module.register_forward_hook(lambda module, inputs, output: caught.append(output))
    try:
        family.call(role, x_t, timestep, condition)
    finally:
        hook.remove()
    # Blocks of two-stream transformers return (text, image).
    found: Tensor = caught[0][-1] if isinstance(caught[0], tuple) else caught[0]
    return found


def make_discriminator(where: Features, seed: int) -> Discriminator:
    """A freshly initialised head for `where`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Discriminator(where.channels, where.dim)
