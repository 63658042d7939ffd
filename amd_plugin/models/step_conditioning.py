"""The exit rung as an input of a fake score whose network's class knows none: a row of a table, added to its embedding of time.

    embedding <- embedding + table[k]        one table [n, D] of zeros for every module that embeds the time

The network's own code stays as it is: a forward hook adds the row. Tables are a part of the network, trained and saved with it,
and named like a role's adapter; `amd_plugin.models.roles.Role` chooses the row, and none when another role calls.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from amd_plugin.config import ModelConfig
from amd_plugin.errors import OptionError
from amd_plugin.models.family import Features

log = logging.getLogger(__name__)

PART = "rungs"
Where = Callable[[nn.Module], Sequence[Features]]


class Table(nn.Module):
    """A row for each of `rungs`, added to what `place` gives while `row` is one.

    Attributes:
        row: index of the row in use, a tensor without dimensions so that a compiled network is one graph for all rungs.
    """

    def __init__(self, place: Features, rungs: int):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(rungs, place.channels))
        self.row: Tensor | None = None
        self._dim = place.dim
        self.hook = place.module.register_forward_hook(self._add)

    def forward(self, embedding: Tensor) -> Tensor:
        """`embedding` with the row added along its channels."""
        assert self.row is not None  # noqa: S101 (the hook asks)
        row = nn.functional.embedding(self.row, self.table).to(embedding.dtype)
        return (embedding.movedim(self._dim, -1) + row).movedim(-1, self._dim)

    def _add(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return output if self.row is None else self(output)


class Rungs(nn.Module):
    """All tables of a network.

    Args:
        role: whose calls they are for.
        places: modules whose output, or the part of it that is added to, embeds the time.
        rungs: n, the student's steps.
    """

    def __init__(self, role: str, places: Sequence[Features], rungs: int):
        super().__init__()
        self._chosen: int | None = None
        # Parameters of a role on a shared base are known by `.role.` in their names.
        self.add_module(role, nn.ModuleList(Table(place, rungs) for place in places))

    @property
    def tables(self) -> list[Table]:
        """In the order of the places."""
        return [module for module in self.modules() if isinstance(module, Table)]

    def choose(self, rung: int | None) -> None:
        """Adds the rows of `rung` from now on, to recomputed activations too; None adds nothing."""
        if rung != self._chosen:
            self._chosen, tables = rung, self.tables
            row = None if rung is None else torch.tensor(rung, device=tables[0].table.device)
            for table in tables:
                table.row = row


def time_embeddings(config: ModelConfig, family: Any, *, warn: bool = False) -> Where | None:
    """Where networks of `family` are told the rung; None where the recipe, or its default, leaves the fake score untold.

    Args:
        warn: say so where it is the family that leaves no choice.

    Raises:
        OptionError: where the recipe insists and the family does not say where.
    """
    if config.rung_conditioning is False or config.student_steps == 1:
        return None
    where: Where | None = getattr(family, "time_embeddings", None)
    if where is None:
        name = getattr(family, "pipeline", type(family).__name__)
        what = f"the family of {name} does not say where its networks embed the time (time_embeddings)"
        if config.rung_conditioning:
            raise OptionError("rung_conditioning", f"{what}, got true. Set model.rung_conditioning: false")
        if warn:
            cost = "the fake score is not told the exit rung and learns a mixture of all rungs"
            log.warning("%s: %s. Set model.rung_conditioning: false to accept that silently", what, cost)
    return where


def add_rungs(network: nn.Module, role: str, places: Sequence[Features], rungs: int) -> None:
    """Gives `network` its tables."""
    network.add_module(PART, Rungs(role, places, rungs))


def rungs_of(network: nn.Module) -> Rungs | None:
    """The tables of `network`, if it has any."""
    found = network._modules.get(PART)
    return found if isinstance(found, Rungs) else None


def check_rungs(names: Iterable[str], network: nn.Module) -> None:
    """Raises OptionError unless tables are among the parameters `names` of a saved network just if `network` has some."""
    saved = any(name.startswith(f"{PART}.") for name in names)
    if saved != (rungs_of(network) is not None):
        what = f"the fake score there was {'' if saved else 'not '}told the rung, and here it is {'not' if saved else 'told'}"
        raise OptionError("rung_conditioning", f"{what}. Set model.rung_conditioning: {str(saved).lower()}")


def remove_rungs(network: nn.Module) -> None:
    """Leaves no trace of tables in `network`."""
    if (found := rungs_of(network)) is not None:
        for table in found.tables:
            table.hook.remove()
        del network._modules[PART]
