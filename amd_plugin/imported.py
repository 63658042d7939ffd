"""Things by name that are imported when they are asked for, so that a list of names imports nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import TypeVar

Value = TypeVar("Value")


class Imported(Mapping[str, Value]):
    """A mapping from names to what is found under their places, e.g. ``{"amd": "amd_plugin.objectives.amd:AMDObjective"}``.

    Args:
        places: ``module:attribute`` by name; relative to `package` with a leading dot.
        package: package of relative modules.
    """

    def __init__(self, places: Mapping[str, str], package: str | None = None):
        self._places, self._package = dict(places), package

    def __getitem__(self, name: str) -> Value:
        """What `name` stands for; raises KeyError for an unknown name."""
        module, _, attribute = self._places[name].partition(":")
        value: Value = getattr(import_module(module, self._package), attribute)
        return value

    def __iter__(self) -> Iterator[str]:
        """The names, in their order."""
        return iter(self._places)

    def __len__(self) -> int:
        """Number of names."""
        return len(self._places)

    def __contains__(self, name: object) -> bool:
        """Whether there is `name`; imports nothing."""
        return name in self._places
