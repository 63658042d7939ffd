"""A check that the installed host has the version and the signatures an adapter was written for.

Adapters override private methods of their host, so they compare these when they are imported.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import logging
from collections.abc import Mapping
from types import ModuleType
from typing import NamedTuple

from packaging.version import Version

from amd_plugin.errors import MissingDependency

log = logging.getLogger(__name__)


class Host(NamedTuple):
    """A host, and the versions an adapter is tested with.

    Attributes:
        distribution: name of the host's distribution.
        minimum: oldest version that works.
        below: first untested version; for this and later ones only the signatures are compared.
        source: requirement to give to pip.
    """

    distribution: str
    minimum: str
    below: str
    source: str

    @property
    def range(self) -> str:
        """The tested versions as a requirement, for messages."""
        return f"{self.distribution}>={self.minimum},<{self.below}"

    def load(self, module: str) -> ModuleType:
        """Imports `module` of the host.

        Raises:
            MissingDependency: if it is not installed, too old, or does not import.
        """
        try:
            version = importlib.metadata.version(self.distribution)
        except importlib.metadata.PackageNotFoundError as error:
            message = f"{self.distribution}: this adapter needs it, but it is not installed"
            raise MissingDependency(f"{message}. pip install '{self.source}'") from error
        if Version(version) < Version(self.minimum):
            message = f"{self.distribution}: this adapter is tested with {self.range}, got {version}"
            raise MissingDependency(f"{message}. pip install --upgrade '{self.source}'")
        if Version(version) >= Version(self.below):
            log.warning(
                "%s %s is newer than the tested %s; its methods are compared one by one", self.distribution, version, self.range
            )
        try:
            return importlib.import_module(module)
        except ImportError as error:
            message = f"{self.distribution} {version}: {module} does not import: {type(error).__name__}: {error}"
            raise MissingDependency(f"{message}. Mend that installation, or install a version of {self.range}") from error

    def check(self, owner: object, expected: Mapping[str, str]) -> None:
        """Compares the parameters of functions with recorded ones.

        Args:
            owner: class or module that holds the functions.
            expected: names of the parameters by name of the function, e.g. ``{"update": "self, step"}``.

        Raises:
            MissingDependency: naming every function that is gone or takes other parameters.
        """
        changes = []
        for name, recorded in expected.items():
            function = getattr(owner, name, None)
            if function is None:
                changes.append(f"{name}({recorded}) is gone")
            elif (installed := ", ".join(inspect.signature(function).parameters)) != recorded:
                changes.append(f"{name} takes ({installed}), not ({recorded})")
        if changes:
            owner_name = getattr(owner, "__qualname__", getattr(owner, "__name__", repr(owner)))
            message = f"{self.distribution}: {owner_name} is not what this adapter was written for: {'; '.join(changes)}"
            raise MissingDependency(f"{message}. Install a version of {self.range}, or a newer amd-plugin")
