"""Step conditioning of a fake score whose network class has no input for the exit rung: a learned row per rung.

    embedding <- embedding + table[k]        one table [n, D] of zeros for every module that embeds the time

The network's own code stays as it is: a forward hook adds the row. Tables are submodules of the network, trained and saved with
it and named like a role's adapter. `amd_plugin.models.roles.Role` selects the row, and no row for calls of other roles.
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
EmbeddingFinder = Callable[[nn.Module], Sequence[Features]]


class Table(nn.Module):
    """One row per rung, added to the output of a module while a row is selected.

    Args:
        place: the module whose output embeds the time.
        rungs: the number of rungs n.

    Attributes:
        table: the rows [n, D].
        row: the index of the selected row, a tensor without dimensions so that a compiled network is one graph for all rungs;
            None for no row.
        hook: the handle of the forward hook.
    """

    def __init__(self, place: Features, rungs: int):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(rungs, place.channels))
        self.row: Tensor | None = None
        self._dim = place.dim
        self.hook = place.module.register_forward_hook(self._add)

    def forward(self, embedding: Tensor) -> Tensor:
        """`embedding` with the selected row added along its channels; same shape and dtype."""
        assert self.row is not None  # noqa: S101 (the hook checks it)
        row = nn.functional.embedding(self.row, self.table).to(embedding.dtype)
        return (embedding.movedim(self._dim, -1) + row).movedim(-1, self._dim)

    def _add(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        if self.row is None:
            return output
        conditioned: Tensor = self(output)
        return conditioned


class Rungs(nn.Module):
    """All tables of a network.

    Args:
        role: the name of the role whose calls use the tables.
        places: the modules whose output, or the part of it that is added to, embeds the time.
        rungs: the number of the student's steps n.
    """

    def __init__(self, role: str, places: Sequence[Features], rungs: int):
        super().__init__()
        self._chosen: int | None = None
        # The parameters of a role on a shared base have `.role.` in their names.
        self.add_module(role, nn.ModuleList(Table(place, rungs) for place in places))

    @property
    def tables(self) -> list[Table]:
        """The tables, in the order of the places."""
        return [module for module in self.modules() if isinstance(module, Table)]

    def choose(self, rung: int | None) -> None:
        """Selects the row of `rung` in all tables from now on, for recomputed activations too; None selects no row."""
        if rung != self._chosen:
            self._chosen, tables = rung, self.tables
            row = None if rung is None else torch.tensor(rung, device=tables[0].table.device)
            for table in tables:
                table.row = row


def time_embeddings(config: ModelConfig, family: Any, *, warn: bool = False) -> EmbeddingFinder | None:
    """The finder of time embeddings in networks of `family`; None where the fake score is not conditioned on the rung.

    Args:
        config: the recipe's model section.
        family: the pipeline family, see `amd_plugin.models.family.Family`.
        warn: whether to log a warning if the family has no such finder.

    Raises:
        OptionError: if the recipe requires conditioning and the family has no such finder.
    """
    if config.rung_conditioning is False or config.student_steps == 1:
        return None
    finder: EmbeddingFinder | None = getattr(family, "time_embeddings", None)
    if finder is None:
        name = getattr(family, "pipeline", type(family).__name__)
        message = f"the family of {name} does not say where its networks embed the time (time_embeddings)"
        if config.rung_conditioning:
            raise OptionError("rung_conditioning", f"{message}, got true. Set model.rung_conditioning: false")
        if warn:
            effect = "the fake score is not conditioned on the exit rung and learns a mixture of all rungs"
            log.warning("%s: %s. Set model.rung_conditioning: false to accept that silently", message, effect)
    return finder


def add_rungs(network: nn.Module, role: str, places: Sequence[Features], rungs: int) -> None:
    """Adds tables of `rungs` rows to `network`, for calls of `role`."""
    network.add_module(PART, Rungs(role, places, rungs))


def rungs_of(network: nn.Module) -> Rungs | None:
    """The tables of `network`; None if it has none."""
    part = network._modules.get(PART)
    return part if isinstance(part, Rungs) else None


def check_rungs(names: Iterable[str], network: nn.Module) -> None:
    """Checks that a saved network with the parameters `names` has tables if and only if `network` has.

    Raises:
        OptionError: if only one of them has.
    """
    saved = any(name.startswith(f"{PART}.") for name in names)
    if saved != (rungs_of(network) is not None):
        was, now = ("", "not ") if saved else ("not ", "")
        message = f"the fake score there was {was}conditioned on the rung, and here it is {now}conditioned on it"
        raise OptionError("rung_conditioning", f"{message}. Set model.rung_conditioning: {str(saved).lower()}")


def remove_rungs(network: nn.Module) -> None:
    """Removes all tables and their hooks from `network`."""
    if (rungs := rungs_of(network)) is not None:
        for table in rungs.tables:
            table.hook.remove()
        del network._modules[PART]
