"""Scenes as pictures: where things may stand, and how they are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from amd_plugin.randomness import generator
from amd_plugin.tasks.scenes.grammar import RELATIONS

# A relation holds from this many pixels between the middles on, and where they are not further apart the other way.
APART, DOMINANT = 5.0, 0.8
LAYOUTS = 8192


class Layouts(NamedTuple):
    """Equally likely places of things that do not touch: L layouts of N things each.

    Attributes:
        size: place of each thing's size in the list of sizes [L, N].
        corner: upper left corners (y, x) in pixels [L, N, 2].
        middle: middles (y, x) in pixels [L, N, 2].
    """

    size: Tensor
    corner: Tensor
    middle: Tensor


def layouts(count: int, edge: int, sizes: Sequence[int], step: int, relation: int | None = None) -> Layouts:
    """Up to `LAYOUTS` random layouts of `count` things on `edge` x `edge` pixels, always the same.

    Args:
        count: number of things, one to four.
        edge: pixels along an edge.
        sizes: sizes of things in pixels.
        step: corners are at multiples of it.
        relation: place in `RELATIONS` of where the first is as seen from the second.
    """
    boxes = torch.tensor(
        [(index, y, x) for index, size in enumerate(sizes)
         for y in range(0, edge - size + 1, step) for x in range(0, edge - size + 1, step)]
    )  # fmt: skip
    lengths = torch.tensor(sizes)[boxes[:, 0]]
    low, high = boxes[:, 1:], boxes[:, 1:] + lengths[:, None]
    apart = ((high[:, None] <= low) | (low[:, None] >= high)).any(2).float()
    draws = generator(0, "layouts", count, edge, tuple(sizes), step)
    # Relations hold for a quarter of all pairs, and the last of four things often finds no place.
    chosen = torch.randint(len(boxes), (8 * LAYOUTS, 1), generator=draws)
    for _ in range(count - 1):
        free = apart[chosen].prod(1)
        chosen = chosen[free.sum(1) > 0]
        chosen = torch.cat((chosen, torch.multinomial(free[free.sum(1) > 0], 1, generator=draws)), 1)
    middle = (low + lengths[:, None] / 2)[chosen]
    if relation is not None:
        kept = holds(relation, middle[:, 0], middle[:, 1])
        chosen, middle = chosen[kept], middle[kept]
    chosen, middle = chosen[:LAYOUTS], middle[:LAYOUTS]
    return Layouts(boxes[chosen, 0], low[chosen], middle)


def margin(relation: int, first: Tensor, second: Tensor) -> Tensor:
    """By how many pixels `relation` of the middles (y, x) `first` to `second` [..., 2] holds; negative where it does not."""
    difference = second - first
    along, across = (difference[..., 1], difference[..., 0]) if relation < 2 else (difference[..., 0], difference[..., 1])
    along = along if RELATIONS[relation] in ("left of", "above") else -along
    return torch.minimum(along - APART, along - DOMINANT * across.abs())


def holds(relation: int, first: Tensor, second: Tensor) -> Tensor:
    """Whether the relation of the middles (y, x) `first` to `second` [..., 2] holds."""
    return margin(relation, first, second) >= 0


def draw(things: Tensor, corners: Tensor, edge: int) -> Tensor:
    """Pictures [B, 3, edge, edge] in [0, 1] on white.

    Args:
        things: sprites [B, N, 4, E, E] of `amd_plugin.tasks.scenes.sprites`; a blank one draws nothing.
        corners: upper left corners (y, x) [B, N, 2], whole pixels.
        edge: pixels along an edge.
    """
    batch, count, _, size, _ = things.shape
    canvas = torch.ones(batch, 3, edge + size, edge + size)
    sample, inner = torch.arange(batch)[:, None, None], torch.arange(size)
    for index in range(count):
        rows, columns = corners[:, index, 0, None, None] + inner[:, None], corners[:, index, 1, None, None] + inner
        colour, coverage = things[:, index, :3].permute(0, 2, 3, 1), things[:, index, 3:].permute(0, 2, 3, 1)
        canvas[sample, :, rows, columns] = canvas[sample, :, rows, columns] * (1 - coverage) + colour
    return canvas[:, :, :edge, :edge]
