"""A host's own fake score, conditioned on the outcome of each sample for advantage guidance."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from amd_plugin.errors import InputError
from amd_plugin.hookspecs import IF_OFFERED, Needs
from amd_plugin.maths.advantage_guidance import NONE
from amd_plugin.models.step_conditioning import OUTCOME, Conditions, Tables, add_tables, tables_of
from amd_plugin.plugins import PluginManager


class OutcomeCondition:
    """The tables of outcomes that were added to a fake score.

    Args:
        tables: the tables.
    """

    def __init__(self, tables: Tables):
        self._tables = tables
        tables.choose(NONE)

    def parameters(self) -> list[nn.Parameter]:
        """The tables' parameters, which may have a learning rate of their own."""
        return list(self._tables.parameters())

    @contextmanager
    def given(self, outcome: Tensor | int) -> Iterator[None]:
        """A context in which the fake score is called for `outcome`, one for all samples or one for each [B]."""
        self._tables.choose(outcome)
        try:
            yield
        finally:
            self._tables.choose(NONE)


def condition_on_outcomes(fake_score: nn.Module, needs: Needs, plugins: PluginManager) -> OutcomeCondition | None:
    """Adds tables of outcomes to `fake_score` if an objective needs them; None if it needs none.

    Args:
        fake_score: the host's fake score, a network of a diffusers class that a family is registered for.
        needs: the objective's needs.
        plugins: manager in which families are looked up.

    Raises:
        InputError: for a network of no family with time embeddings, unless the need is `IF_OFFERED`.
    """
    if not needs.fake_score_outcome:
        return None
    name = type(fake_score).__name__
    family = next((f for f in plugins.families().values() if f.network == name and hasattr(f, "time_embeddings")), None)
    if family is None:
        if needs.fake_score_outcome == IF_OFFERED:
            return None
        message = f"no family says where a {name} embeds the time (time_embeddings)"
        raise InputError(f"amd.advantage_guidance: {message}. Leave it out")
    places = family({}, dict(getattr(fake_score, "config", {}))).time_embeddings
    add_tables(fake_score, "fake_score", Conditions(places, outcomes=True))
    tables = tables_of(fake_score, OUTCOME)
    assert tables is not None  # noqa: S101
    return OutcomeCondition(tables)
