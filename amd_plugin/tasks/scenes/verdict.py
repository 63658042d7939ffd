"""Whether pictures show what was asked for: a yes or no in GenEval's way, and a score in nats for training."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, max_pool2d

from amd_plugin.tasks.scenes.detector import Reading
from amd_plugin.tasks.scenes.drawing import margin
from amd_plugin.tasks.scenes.grammar import RELATIONS

FLOOR, LOWEST = -4.0, -16.0
# By how many pixels a relation may fail to hold, as detectors are not exact. The opposite relation fails by ten or more, and
# one at a right angle by five; but of diagonal pictures both can hold, or fail by less than this, and pass.
TOLERANCE = 1.0


class Asked(NamedTuple):
    """What B prompts ask for: `number` [B] things of `object` and `colour` [B, N] (-1: any), in `relation` [B] (-1: any)."""

    number: Tensor
    object: Tensor
    colour: Tensor
    relation: Tensor


class Verdict(NamedTuple):
    """The judgement of B pictures.

    Attributes:
        right: whether a picture shows what was asked for and nothing else [B].
        soft: the log probability of that in [-16, 0] [B], differentiable.
        blended: share of a picture's things that are none of the objects [B]; 0 where it shows nothing.
    """

    right: Tensor
    soft: Tensor
    blended: Tensor


def judge(reading: Reading, asked: Asked) -> Verdict:
    """The verdict on `reading` of B pictures that were asked for `asked`."""
    peaks = _peaks(reading)
    junk = reading.thing.shape[2] - 2
    blended = (peaks & (reading.thing[..., :-1].argmax(2) == junk)).sum(1) / peaks.sum(1).clamp(min=1)
    return Verdict(_right(reading, peaks, asked), _soft(reading, peaks, asked), blended)


def _peaks(reading: Reading) -> Tensor:
    """Cells [B, G] with a thing: it is likelier than nothing, and likelier than in the eight cells around."""
    there = 1 - reading.thing[..., -1].exp()
    edge = int(there.shape[1] ** 0.5)
    around = max_pool2d(there.unflatten(1, (1, edge, edge)), 3, 1, 1).flatten(1)
    return (there > 0.5) & (there == around)


def _right(reading: Reading, peaks: Tensor, asked: Asked) -> Tensor:
    thing, colour = reading.thing[..., :-1].argmax(2), reading.colour.argmax(2)
    fits = peaks[:, None] & (thing[:, None] == asked.object[..., None])
    fits &= (asked.colour[..., None] < 0) | (colour[:, None] == asked.colour[..., None])
    right = peaks.sum(1) == asked.number
    # Objects are either all the same or all different, so that each thing asked for has as many places as the count says.
    for slot in range(asked.object.shape[1]):
        same = (asked.object == asked.object[:, slot, None]).sum(1)
        right &= (slot >= asked.number) | (fits[:, slot].sum(1) == same)
    middles = [(fits[:, slot, :, None] * reading.middle).sum(1) for slot in (0, 1)]
    for relation in range(len(RELATIONS)):
        right &= (asked.relation != relation) | (margin(relation, *middles) >= -TOLERANCE)
    return right


def _soft(reading: Reading, peaks: Tensor, asked: Asked) -> Tensor:
    nothing = reading.thing[..., -1].clamp(max=-1e-6)
    there = torch.log(-torch.expm1(nothing)).clamp(min=FLOOR)
    # Log probability, in each cell, of a thing, of its object and of its colour, each with its floor [B, N, G].
    index = asked.object.clamp(min=0)[..., None].expand(-1, -1, nothing.shape[1])
    of_object = reading.thing.transpose(1, 2).gather(1, index)
    kind = (of_object - torch.log(-torch.expm1(nothing))[:, None]).clamp(FLOOR, 0)
    of_colour = reading.colour.transpose(1, 2).gather(1, asked.colour.clamp(min=0)[..., None].expand_as(index))
    score = there[:, None] + kind + torch.where(asked.colour[..., None] < 0, 0, of_colour.clamp(min=FLOOR))
    extra = torch.where(peaks, nothing.clamp(min=FLOOR), 0)
    near = _near(int(nothing.shape[1] ** 0.5)).to(nothing.device)
    pair = (asked.number == 2) & (asked.object[:, 0] != asked.object[:, 1])
    soft = torch.where(
        pair, _best_pair(score, extra, reading.middle, asked.relation, near), _best_row(score, extra, asked, near)
    )
    return soft.clamp(min=LOWEST)


def _near(edge: int) -> Tensor:
    """Whether two cells are the same or touch [G, G]."""
    rows, columns = torch.meshgrid(torch.arange(edge), torch.arange(edge), indexing="ij")
    cells = torch.stack((rows.flatten(), columns.flatten()), 1)
    return (cells[:, None] - cells[None]).abs().amax(2) <= 1


def _best_pair(score: Tensor, extra: Tensor, middle: Tensor, relation: Tensor, near: Tensor) -> Tensor:
    """The best two cells that do not touch [B], for two different things: scores, relation, and what is left over."""
    together = score[:, 0, :, None] + score[:, 1, None, :]
    for index in range(len(RELATIONS)):
        fits = logsigmoid(2 * margin(index, middle[:, :, None], middle[:, None])).clamp(min=FLOOR)
        together = together + torch.where((relation == index)[:, None, None], fits, 0)
    around = extra @ near.to(extra)
    left = extra.sum(1)[:, None, None] - around[:, :, None] - around[:, None, :]
    return (together + left.clamp(max=0)).masked_fill(near, -torch.inf).flatten(1).amax(1)


def _best_row(score: Tensor, extra: Tensor, asked: Asked, near: Tensor) -> Tensor:
    """One to four things of one object: the best cells in turn, none touching another, and what is left over [B]."""
    free = torch.ones_like(extra, dtype=torch.bool)
    total = torch.zeros_like(extra[:, 0])
    for slot in range(score.shape[1]):
        wanted = slot < asked.number
        best, cell = score[:, 0].masked_fill(~free, 2 * FLOOR * score.shape[1]).max(1)
        total = total + torch.where(wanted, best.clamp(min=3 * FLOOR), 0)
        free = free & ~(near[cell] & wanted[:, None])
    return total + (extra * free).sum(1)
