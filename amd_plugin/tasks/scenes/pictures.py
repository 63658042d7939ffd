"""Scenes on demand: pictures of prompts, drawn by a keyed generator."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from amd_plugin.tasks.scenes.drawing import Layouts, draw, layouts
from amd_plugin.tasks.scenes.grammar import RELATIONS, Prompt
from amd_plugin.tasks.scenes.sprites import sprites

EDGE, MOST = 24, 4


class Pictures:
    """Draws any of `prompts`, a mapping from places in that list to pictures.

    Args:
        prompts: the grammar's prompts.
        objects, colours: the names that they are about.
        sizes: sizes of things in pixels; each thing's is drawn.
        step: things stand at multiples of it.
    """

    def __init__(
        self, prompts: Sequence[Prompt], objects: Sequence[str], colours: Sequence[str], sizes: Sequence[int], step: int
    ):
        self._objects, self._colours, self._sizes, self._step = objects, colours, sizes, step
        self.count = torch.tensor([len(prompt.things) for prompt in prompts])
        self.relation = torch.tensor([-1 if prompt.relation is None else prompt.relation for prompt in prompts])
        padded = [[*prompt.things, *[(-1, None)] * (MOST - len(prompt.things))] for prompt in prompts]
        self.object = torch.tensor([[thing[0] for thing in things] for things in padded])
        self.colour = torch.tensor([[-1 if thing[1] is None else thing[1] for thing in things] for things in padded])

    @cached_property
    def bank(self) -> Tensor:
        """All sprites, see `amd_plugin.tasks.scenes.sprites`."""
        return sprites(self._objects, self._colours, self._sizes)

    @cached_property
    def _layouts(self) -> dict[tuple[int, int], Layouts]:
        wanted = [(count, -1) for count in range(1, MOST + 1)] + [(2, relation) for relation in range(len(RELATIONS))]
        return {
            (count, relation): layouts(count, EDGE, self._sizes, self._step, None if relation < 0 else relation)
            for count, relation in wanted
        }

    def __call__(self, labels: Tensor, draws: torch.Generator) -> Tensor:
        """Pictures [B, 3, 24, 24] in [0, 1] of `labels` [B]; a colour that nobody asked for is any."""
        size, corner, _ = self.places(labels, draws)
        colour = self.colours(labels, draws)
        things = self.bank[self.object[labels], colour, size]
        things = things * (torch.arange(MOST) < self.count[labels, None])[:, :, None, None, None]
        return draw(things, corner, EDGE)

    def colours(self, labels: Tensor, draws: torch.Generator) -> Tensor:
        """The colour of every thing [B, 4]: the one that is asked for, else any."""
        free = torch.randint(len(self._colours), (len(labels), MOST), generator=draws)
        asked = self.colour[labels]
        return torch.where(asked < 0, free, asked)

    def places(self, labels: Tensor, draws: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """(size [B, 4], corner [B, 4, 2], middle [B, 4, 2]) of every thing; things that are not asked for have zeros."""
        size = torch.zeros(len(labels), MOST, dtype=torch.long)
        corner = torch.zeros(len(labels), MOST, 2, dtype=torch.long)
        middle = torch.zeros(len(labels), MOST, 2)
        chosen = torch.rand(len(labels), generator=draws)
        for (count, relation), of in self._layouts.items():
            rows = ((self.count[labels] == count) & (self.relation[labels] == relation)).nonzero()[:, 0]
            index = (chosen[rows] * len(of.size)).long()
            size[rows, :count], corner[rows, :count], middle[rows, :count] = of.size[index], of.corner[index], of.middle[index]
        return size, corner, middle
