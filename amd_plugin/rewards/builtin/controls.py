"""Rewards that should not help: a random one that a real effect must beat, and one that the hacking alarm must detect."""

from collections.abc import Sequence

import torch
from torch import Tensor

from amd_plugin.randomness import generator


class RandomReward:
    """A fixed, wildly oscillating function of the sample: as good as noise, and the same when a run is resumed."""

    unit = 12**-0.5  # its standard deviation, so that it moves the student as far as any reward may

    def __call__(self, media: Tensor, prompts: Sequence[str]) -> Tensor:
        """[B], roughly uniform in [0, 1)."""
        flat = media.flatten(1).double()
        weights = torch.randn(flat.shape[1], generator=generator(0, "random reward"), dtype=torch.float64)
        return torch.frac(1e4 * torch.sin(1e3 * (flat @ weights.to(flat.device)))).abs().float()


class HackableReward:
    """The distance of a point from 0, or the brightness of a picture, whatever its prompt: easy to hack."""

    def __call__(self, media: Tensor, prompts: Sequence[str]) -> Tensor:
        """[B], the root mean square of a sample's values."""
        return media.flatten(1).float().square().mean(1).sqrt()
