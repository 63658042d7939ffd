"""Rewards that know nothing: what an effect must beat before it may be called one."""

from collections.abc import Sequence

import torch
from torch import Tensor

from amd_plugin.randomness import generator


class RandomReward:
    """A fixed, wildly oscillating function of the sample: noise in all but name, the same when a run is resumed."""

    def __call__(self, media: Tensor, prompts: Sequence[str]) -> Tensor:
        """[B], roughly uniform in [0, 1)."""
        flat = media.flatten(1).double()
        weights = torch.randn(flat.shape[1], generator=generator(0, "random reward"), dtype=torch.float64)
        return torch.frac(1e4 * torch.sin(1e3 * (flat @ weights.to(flat.device)))).abs().float()
