"""Conditions of a fake score whose network class has no input for them: a learned row per exit rung, and one per outcome.

    embedding <- embedding + rungs[k] + outcomes[o]     tables [n, D] and [3, D] of zeros for every module that embeds the time

The network's own code stays as it is: a forward hook adds the rows. Tables are submodules of the network, trained and saved
with it and named like a role's adapter. `amd_plugin.models.roles.Role` selects the rows, and no row for calls of other roles.
The first outcome, `NONE` of `amd_plugin.maths.advantage_guidance`, has a row that stays zero.

Where a table shares the network's optimizer and its rate is too small, its rows are `gain` times its parameter, with the rows'
gradient: Adam's updates do not depend on the gradient's length, so that the rows learn at `gain` times the rate.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from amd_plugin.config import ModelConfig
from amd_plugin.errors import InputError, OptionError
from amd_plugin.maths.advantage_guidance import NONE, OUTCOMES
from amd_plugin.models.family import Features

log = logging.getLogger(__name__)

RUNG_LR = 4e-4  # lowest rate of a table of rungs: at 2e-5 its rows are near zero after 400 updates, as if there were none
RUNGS, OUTCOME = "rungs", "outcomes"
PARTS = (RUNGS, OUTCOME)  # names of the tables' submodules in a network
EmbeddingFinder = Callable[[nn.Module], Sequence[Features]]


class Conditions(NamedTuple):
    """The conditions of the fake score beside time and prompt, and the place of their tables.

    Attributes:
        places: the finder of the modules that embed the time.
        rungs: the number of rungs of the table of rungs; 0 for no such table.
        outcomes: whether there is a table of outcomes.
        gain: the gain of the table of outcomes, see `Table`.
        rung_gain: the gain of the table of rungs.
    """

    places: EmbeddingFinder
    rungs: int = 0
    outcomes: bool = False
    gain: float = 1.0
    rung_gain: float = 1.0


class Table(nn.Module):
    """Rows that are added to the output of a module while they are selected.

    Args:
        place: the module whose output embeds the time.
        rows: the number of rows n.
        fixed: the index of a row that stays zero; None for none.
        gain: the factor of the rows over the parameter, a power of two, so that it rounds nothing in any dtype.

    Attributes:
        table: the parameter [n, D]. Its gradient is that of the rows `gain * table`, and a `state_dict` has the rows, so that
            a checkpoint means the same at every gain.
        row: the index of the selected row, a tensor [B], or without dimensions for all samples, so that a compiled network is
            one graph for all rows; None for no row.
        hook: the handle of the forward hook.
    """

    def __init__(self, place: Features, rows: int, fixed: int | None = None, gain: float = 1.0):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(rows, place.channels))
        self.row: Tensor | None = None
        self._dim, self._fixed, self._gain = place.dim, fixed, gain
        self.hook = place.module.register_forward_hook(self._add)

    def forward(self, embedding: Tensor) -> Tensor:
        """`embedding` [B, ...] with the selected rows added along its channels; same shape and dtype."""
        assert self.row is not None  # noqa: S101 (the hook checks it)
        row = nn.functional.embedding(self.row, self.table, padding_idx=self._fixed)
        if self._gain != 1:  # the second term is zero, and has the gradient
            row = self._gain * row.detach() + (row - row.detach())
        row = row.to(embedding.dtype)
        channels_last = embedding.movedim(self._dim, -1)
        if row.dim() > 1:
            if len(channels_last) > len(row):  # frames have times of their own, and a sample's follow one another
                row = row.repeat_interleave(len(channels_last) // len(row), 0)
            row = row.reshape(len(row), *[1] * (channels_last.dim() - 2), -1)
        return (channels_last + row).movedim(-1, self._dim)

    def _add(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        if self.row is None:
            return output
        conditioned: Tensor = self(output)
        return conditioned

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self._gain != 1:
            destination[f"{prefix}table"] = destination[f"{prefix}table"] * self._gain

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *how: Any) -> None:
        if self._gain != 1 and (rows := state_dict.get(f"{prefix}table")) is not None:
            state_dict = {**state_dict, f"{prefix}table": rows / self._gain}
        super()._load_from_state_dict(state_dict, prefix, *how)


class Tables(nn.Module):
    """The tables of one condition in a network.

    Args:
        role: the name of the role whose calls use the tables.
        places: the modules whose output, or the part of it that is added to, embeds the time.
        rows: the number of rows n.
        fixed: the index of a row that stays zero; None for none.
        gain: see `Table`.
    """

    def __init__(self, role: str, places: Sequence[Features], rows: int, fixed: int | None = None, gain: float = 1.0):
        super().__init__()
        self._chosen: int | Tensor | None = None
        # The parameters of a role on a shared base have `.role.` in their names.
        self.add_module(role, nn.ModuleList(Table(place, rows, fixed, gain) for place in places))

    @property
    def tables(self) -> list[Table]:
        """The tables, in the order of the places."""
        return [module for module in self.modules() if isinstance(module, Table)]

    def choose(self, row: int | Tensor | None) -> None:
        """Selects `row`, one for all samples or one for each [B], from now on, for recomputed activations too.

        None selects no row.
        """
        if isinstance(row, int) and isinstance(self._chosen, int) and row == self._chosen:
            return
        self._chosen, tables = row, self.tables
        chosen = torch.tensor(row, device=tables[0].table.device) if isinstance(row, int) else row
        for table in tables:
            table.row = chosen


def conditions(
    config: ModelConfig, family: Any, *, outcomes: bool | Literal["if offered"] = False, warn: bool = False
) -> Conditions | None:
    """The tables that condition the fake score of a run on networks of `family`; None for none.

    Args:
        config: the recipe's model section.
        family: the pipeline family, see `amd_plugin.models.family.Family`.
        outcomes: whether the objective needs a fake score that is conditioned on the outcome, see `amd_plugin.hookspecs.Needs`.
        warn: whether to log a warning if conditions are left out because the family has no finder of time embeddings.

    Raises:
        InputError: if the objective needs outcomes, and the family has no such finder.
        OptionError: if the recipe requires conditioning on rungs, and the family has no such finder.
    """
    rungs = 0 if config.rung_conditioning is False or config.student_steps == 1 else config.student_steps
    if not rungs and not outcomes:
        return None
    finder: EmbeddingFinder | None = getattr(family, "time_embeddings", None)
    if finder is not None:
        return Conditions(finder, rungs, bool(outcomes))
    name = getattr(family, "pipeline", type(family).__name__)
    message = f"the family of {name} does not say where its networks embed the time (time_embeddings)"
    if outcomes is True:
        raise InputError(f"objective.advantage_guidance: {message}. Set it to 0")
    if config.rung_conditioning:
        raise OptionError("rung_conditioning", f"{message}, got true. Set model.rung_conditioning: false")
    if warn and outcomes:
        log.warning("%s: advantage guidance is off. Set objective.advantage_guidance: 0 to accept that silently", message)
    if warn and rungs:
        effect = "the fake score is not conditioned on the exit rung and learns a mixture of all rungs"
        log.warning("%s: %s. Set model.rung_conditioning: false to accept that silently", message, effect)
    return None


def add_tables(network: nn.Module, role: str, conditions: Conditions) -> None:
    """Adds the tables of `conditions` to `network`, for calls of `role`."""
    if not (conditions.rungs or conditions.outcomes):
        return
    places = conditions.places(network)
    if conditions.rungs:
        network.add_module(RUNGS, Tables(role, places, conditions.rungs, gain=conditions.rung_gain))
    if conditions.outcomes:
        network.add_module(OUTCOME, Tables(role, places, len(OUTCOMES), NONE, conditions.gain))


def tables_of(network: nn.Module, part: str) -> Tables | None:
    """The tables of `part`, `RUNGS` or `OUTCOME`, in `network`; None if it has none."""
    tables = network._modules.get(part)
    return tables if isinstance(tables, Tables) else None


def in_outcomes(name: str) -> bool:
    """Whether the parameter `name` of a network is a table of outcomes."""
    return name.startswith(f"{OUTCOME}.")


def in_rungs(name: str) -> bool:
    """Whether the parameter `name` of a network is a table of rungs."""
    return name.startswith(f"{RUNGS}.")


def check_tables(names: Iterable[str], network: nn.Module) -> None:
    """Checks that a saved network with the parameters `names` has the tables that `network` has.

    Raises:
        OptionError: if only one of them has a table.
    """
    saved = list(names)
    for part, option, condition, setting in (
        (RUNGS, "model.rung_conditioning", "rung", "model.rung_conditioning: {}"),
        (OUTCOME, "objective.advantage_guidance", "outcome", "objective.advantage_guidance: {}"),
    ):
        before = any(name.startswith(f"{part}.") for name in saved)
        if before != (tables_of(network, part) is not None):
            was, now = ("", "not ") if before else ("not ", "")
            message = f"the fake score there was {was}conditioned on the {condition}, and here it is {now}conditioned on it"
            value = str(before).lower() if part == RUNGS else ("its value there" if before else "0")
            raise OptionError(option, f"{message}. Set {setting.format(value)}")


def remove_tables(network: nn.Module) -> None:
    """Removes all tables and their hooks from `network`."""
    for part in PARTS:
        if (tables := tables_of(network, part)) is not None:
            for table in tables.tables:
                table.hook.remove()
            del network._modules[part]
