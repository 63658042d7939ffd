"""The network that reads scenes: what stands in each cell of 4 x 4 pixels, in which colour, and where exactly."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

CELL = 4


class Reading(NamedTuple):
    """What a detector sees in B pictures, in G cells each; log probabilities.

    Attributes:
        thing: of each object, then of something else, then of nothing [B, G, objects + 2].
        colour: of each colour, if there is a thing [B, G, colours].
        middle: middle of the thing (y, x) in pixels [B, G, 2].
    """

    thing: Tensor
    colour: Tensor
    middle: Tensor


class Detector(nn.Module):
    """A convolutional network with one output per cell.

    Args:
        objects, colours: how many there are.
        width: channels of the first layer.
    """

    def __init__(self, objects: int, colours: int, width: int):
        super().__init__()
        self._parts = (objects + 2, colours, 2)
        self.body = nn.Sequential(
            nn.Conv2d(3, width, 4, stride=2, padding=1), nn.ReLU(), nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU(),
            nn.Conv2d(2 * width, 4 * width, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(4 * width, 4 * width, 3, padding=1), nn.ReLU(), nn.Conv2d(4 * width, 4 * width, 3, padding=1), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Conv2d(4 * width, sum(self._parts), 1)

    def forward(self, media: Tensor) -> Reading:
        """The reading of pictures [B, 3, H, W] in [0, 1]."""
        output = self.head(self.body(media * 2 - 1))
        rows, columns = torch.meshgrid(*(torch.arange(n, device=media.device) for n in output.shape[2:]), indexing="ij")
        corner = CELL * torch.stack((rows, columns), 2).flatten(0, 1)
        thing, colour, offset = output.flatten(2).transpose(1, 2).split(self._parts, 2)
        return Reading(thing.log_softmax(2), colour.log_softmax(2), corner + CELL * offset.sigmoid())

    def features(self, media: Tensor) -> Tensor:
        """Features [B, 8 width] of pictures [B, 3, H, W]: means and maxima of the last layer."""
        last = self.body(media * 2 - 1).flatten(2)
        return torch.cat((last.mean(2), last.amax(2)), 1)


def loss(reading: Reading, thing: Tensor, colour: Tensor, middle: Tensor) -> Tensor:
    """The training loss of a reading.

    Args:
        reading: of B pictures.
        thing: true class of each cell [B, G].
        colour: true colour of each cell [B, G]; -100 where there is none to learn.
        middle: true middle (y, x) in pixels [B, G, 2]; NaN in cells without a thing.
    """
    there = ~middle[..., 0].isnan()
    where = (reading.middle[there] - middle[there]).abs().mean()
    return (
        nn.functional.nll_loss(reading.thing.flatten(0, 1), thing.flatten(), reduction="sum") / there.sum()
        + nn.functional.nll_loss(reading.colour.flatten(0, 1), colour.flatten(), ignore_index=-100)
        + 0.2 * where
    )
