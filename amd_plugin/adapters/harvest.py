"""One rollout per cycle for a host that calls the turns of student and fake score one by one.

A rollout from noise through all N rungs passes a sample at each of them. The student changes only at the end of a cycle, so all
turns of the cycle may use these samples. The student's turn repeats its rung's call from the kept input, with a graph. The fake
score's turns have the other rungs in turn, so that it was not trained on the samples that it is asked about.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
import torch.distributed as dist
from torch import Tensor

from amd_plugin.adapters.bridge import Scored
from amd_plugin.errors import InputError

Rollouts = Literal["fresh", "harvest"]


@dataclass
class Harvest:
    """The samples of one rollout of one micro-batch.

    Attributes:
        inputs: the host's batch or arguments that gave the samples. They replace those of the cycle's later turns.
        samples: the student's samples [B, ...] at each of N rungs, without graph.
        x: the input [B, ...] of the student's call at its rung.
        rung: the index of the student's rung.
        scores: the scores of the samples, by rung, filled by the first turn that needs them.
    """

    inputs: Any
    samples: list[Tensor]
    x: Tensor
    rung: int
    scores: dict[int, Scored] = field(default_factory=dict)

    def rung_of_fake_score(self, update: int) -> int:
        """The index of the rung of the cycle's fake-score turn `update`, from 0: never the student's."""
        return (self.rung + 1 + update % (len(self.samples) - 1)) % len(self.samples)


def checked_rollouts(rollouts: Any, where: str, refusal: str) -> bool:
    """Whether rollouts are harvested.

    Args:
        rollouts: the option's value.
        where: the option's name in messages.
        refusal: why this run cannot harvest; empty if it can.

    Raises:
        InputError: for another value than those of `Rollouts`, or for ``harvest`` in a run that cannot.
    """
    if rollouts not in get_args(Rollouts):
        raise InputError(f"{where}: must be one of {', '.join(get_args(Rollouts))}, got {rollouts!r}")
    if rollouts == "harvest" and refusal:
        raise InputError(f"{where}: harvest {refusal}. Leave it out")
    return bool(rollouts == "harvest")


def agreed_rung(count: int, device: torch.device, draws: torch.Generator | None = None) -> Tensor:
    """The index [1] of an exit rung, drawn evenly from `count` by rank 0 for all ranks."""
    rung = torch.randint(count, [1], device=device, generator=draws)
    if dist.is_available() and dist.is_initialized():
        dist.broadcast(rung, src=0)
    return rung
