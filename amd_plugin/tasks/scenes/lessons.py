"""What detectors learn from: scenes of anything, at any place, with a share of things that no prompt names."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from amd_plugin.tasks.scenes.detector import CELL
from amd_plugin.tasks.scenes.drawing import Layouts, draw, layouts
from amd_plugin.tasks.scenes.pictures import EDGE, MOST
from amd_plugin.tasks.scenes.sprites import sprites

SIZES, JUNK = (10, 11, 12), 0.25


class Lesson(NamedTuple):
    """Pictures [B, 3, 24, 24] in [0, 1] with the truth about their cells, see `detector.loss`."""

    pictures: Tensor
    thing: Tensor
    colour: Tensor
    middle: Tensor


class Lessons:
    """Draws lessons about `objects` in `colours`; `others` are objects that must not pass for one of them."""

    def __init__(self, objects: list[str], others: list[str], colours: list[str]):
        self._bank = sprites([*objects, *others], colours, SIZES)
        self._objects, self._colours = len(objects), len(colours)
        self._layouts = [layouts(count, EDGE, SIZES, 1) for count in range(1, MOST + 1)]

    def __call__(self, count: int, draws: torch.Generator) -> Lesson:
        """`count` pictures of one to four things, a quarter of them something else."""
        objects = torch.randint(self._objects, (count, MOST), generator=draws)
        colours = torch.randint(self._colours, (count, MOST), generator=draws)
        size, corner, middle, there = self._places(count, draws)
        things, is_junk = self._things(objects, colours, size, draws)
        pictures = draw(things * there[:, :, None, None, None], corner, EDGE)
        truth = torch.where(is_junk, self._objects, objects)
        return Lesson(_worn(pictures, draws), *self._cells(truth, colours, middle, there))

    def _places(self, count: int, draws: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        size, corner = torch.zeros(count, MOST, dtype=torch.long), torch.zeros(count, MOST, 2, dtype=torch.long)
        middle, number = torch.zeros(count, MOST, 2), torch.randint(1, MOST + 1, (count,), generator=draws)
        chosen = torch.rand(count, generator=draws)
        for things, of in enumerate(self._layouts, 1):
            rows = (number == things).nonzero()[:, 0]
            _fill((size, corner, middle), rows, of, (chosen[rows] * len(of.size)).long())
        return size, corner, middle, torch.arange(MOST) < number[:, None]

    def _things(self, objects: Tensor, colours: Tensor, size: Tensor, draws: torch.Generator) -> tuple[Tensor, Tensor]:
        """(sprites [B, 4, 4, E, E], whether each is something else): an outsider, or two objects or two colours in one."""
        things = self._bank[objects, colours, size]
        kind = torch.rand(objects.shape, generator=draws)
        outsiders = torch.randint(self._objects, len(self._bank), objects.shape, generator=draws)
        others = (objects + torch.randint(1, self._objects, objects.shape, generator=draws)) % self._objects
        repainted = (colours + torch.randint(1, self._colours, objects.shape, generator=draws)) % self._colours
        halves = _halves(things, size, draws)
        blended = self._bank[others, colours, size]
        twofold = halves * things + (1 - halves) * blended
        painted = halves * things + (1 - halves) * self._bank[objects, repainted, size]
        junk = torch.where(
            _wide(kind < 0.1), self._bank[outsiders, colours, size], torch.where(_wide(kind < 0.18), twofold, painted)
        )
        return torch.where(_wide(kind < JUNK), junk, things), kind < JUNK

    def _cells(self, truth: Tensor, colours: Tensor, middle: Tensor, there: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        batch, per_edge = len(truth), EDGE // CELL
        thing = torch.full((batch, per_edge**2), self._objects + 1)
        colour, where = torch.full_like(thing, -100), torch.full((batch, per_edge**2, 2), float("nan"))
        sample, slot = there.nonzero(as_tuple=True)
        cell = (middle[sample, slot] // CELL).long()
        index = cell[:, 0] * per_edge + cell[:, 1]
        thing[sample, index], where[sample, index] = truth[sample, slot], middle[sample, slot]
        colour[sample, index] = torch.where(truth == self._objects, -100, colours)[sample, slot]
        return thing, colour, where


def _fill(into: tuple[Tensor, Tensor, Tensor], rows: Tensor, of: Layouts, index: Tensor) -> None:
    for target, values in zip(into, of, strict=True):
        target[rows, : values.shape[1]] = values[index]


def _wide(values: Tensor) -> Tensor:
    return values[:, :, None, None, None]


def _halves(things: Tensor, size: Tensor, draws: torch.Generator) -> Tensor:
    """Weights [B, N, 1, E, E] of one of two sprites: the left or upper part, or a half everywhere."""
    way = _wide(torch.rand(size.shape, generator=draws))
    ramp = torch.arange(things.shape[-1])
    cut = _wide(torch.tensor(SIZES)[size] / 2)
    left, upper = (ramp < cut).float(), (ramp[:, None] < cut).float()
    return torch.where(way < 0.4, left, torch.where(way < 0.8, upper, 0.5)).expand(*size.shape, 1, *things.shape[-2:])


def _worn(pictures: Tensor, draws: torch.Generator) -> Tensor:
    """Pictures a little blurred and noisy, so that generated ones are within what was learnt."""
    strength = torch.rand(2, len(pictures), 1, 1, 1, generator=draws)
    blurred = avg_pool2d(pictures, 3, 1, 1, count_include_pad=False)
    mixed = torch.lerp(pictures, blurred, 0.6 * strength[0] ** 2)
    return (mixed + 0.1 * strength[1] ** 2 * torch.randn(pictures.shape, generator=draws)).clamp(0, 1)
