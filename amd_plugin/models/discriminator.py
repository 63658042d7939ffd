"""A discriminator: a small head on features in the middle of the fake score, as in DMD2."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from amd_plugin.models.family import Condition, Features, SupportsCall


class Discriminator(nn.Module):
    """A logit per position of a network's features, averaged; works for feature maps, tokens and vectors.

    Args:
        channels: number of channels of the features.
        dim: dimension of the channels.
        hidden: number of hidden units.
    """

    def __init__(self, channels: int, dim: int, hidden: int = 256):
        super().__init__()
        self._dim = dim
        self.head = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, hidden), nn.SiLU(), nn.Linear(hidden, 1))

    def forward(self, features: Tensor) -> Tensor:
        """Logits [B], positive for real samples, of features [B, ...]."""
        logits: Tensor = self.head(features.float().movedim(self._dim, -1))
        return logits.flatten(1).mean(1)


def features_of(
    caller: SupportsCall, role: Any, location: Features, x_t: Tensor, timestep: Tensor, condition: Condition
) -> Tensor:
    """The features at `location` [B, ...] when `role` is called for x_t [B, ...] at `timestep` [B]."""
    outputs: list[Any] = []
    hook = location.module.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    try:
        with torch.compiler.set_stance("force_eager"):  # a compiled network leaves out hooks that it was compiled without
            caller.call(role, x_t, timestep, condition)
    finally:
        hook.remove()
    # Blocks of two-stream transformers return (text, image).
    features: Tensor = outputs[0][-1] if isinstance(outputs[0], tuple) else outputs[0]
    return features


def make_discriminator(location: Features, seed: int) -> Discriminator:
    """A freshly initialised head for features at `location`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Discriminator(location.channels, location.dim)
