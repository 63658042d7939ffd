"""A check that the installed host has the version and the signatures an adapter was written for.

Adapters override private methods of their host, so they compare these when they are imported.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import inspect
import json
import logging
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
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
        source: requirement to give to pip; for a host that cannot be installed, the command that gets it.
        package: name to import, for a host that may also be a checkout on PYTHONPATH; empty for others.
        commit: the tested commit of a host whose version says less than that; empty for others.
    """

    distribution: str
    minimum: str
    below: str
    source: str
    package: str = ""
    commit: str = ""

    @property
    def range(self) -> str:
        """The tested versions as a requirement, for messages."""
        return f"{self.distribution}>={self.minimum},<{self.below}" if self.below else self.source

    @property
    def how_to_get(self) -> str:
        """The command that gets a tested version."""
        return self.source if self.source.startswith("git clone") else f"pip install '{self.source}'"

    def load(self, module: str) -> ModuleType:
        """Imports `module` of the host.

        Raises:
            MissingDependency: if it is not installed, too old, or does not import.
        """
        version = self._version()
        if version and Version(version) < Version(self.minimum):
            message = f"{self.distribution}: this adapter is tested with {self.range}, got {version}"
            raise MissingDependency(f"{message}. pip install --upgrade '{self.source}'")
        if version and self.below and Version(version) >= Version(self.below):
            _say_untested(self.distribution, version, self.range)
        elif self.commit and (commit := self._commit()) not in ("", self.commit):
            _say_untested(self.distribution, f"of commit {commit[:12]}", f"commit {self.commit[:12]}")
        try:
            return importlib.import_module(module)
        except ImportError as error:
            which = f"{self.distribution} {version}".strip()
            message = f"{which}: {module} does not import: {type(error).__name__}: {error}"
            raise MissingDependency(f"{message}. Mend that installation, or get a tested one: {self.how_to_get}") from error

    def _version(self) -> str:
        """The installed version, or that of a checkout; empty for a checkout that states none."""
        try:
            return importlib.metadata.version(self.distribution)
        except importlib.metadata.PackageNotFoundError as error:
            if self.package and importlib.util.find_spec(self.package) is not None:
                return _version_of_checkout(self.package)
            message = f"{self.distribution}: this adapter needs it, but it is not installed"
            raise MissingDependency(f"{message}. {self.how_to_get}") from error

    def _commit(self) -> str:
        """The commit that was installed by pip, or that a checkout is at; empty if neither is recorded."""
        with suppress(importlib.metadata.PackageNotFoundError):
            recorded = importlib.metadata.distribution(self.distribution).read_text("direct_url.json") or "{}"
            if commit := json.loads(recorded).get("vcs_info", {}).get("commit_id"):
                return str(commit)
        spec = importlib.util.find_spec(self.package)
        folders = [Path(folder) for folder in (spec and spec.submodule_search_locations) or []][:1]
        for git in (parent / ".git" for folder in folders for parent in list(folder.parents)[:2]):
            if (git / "HEAD").is_file():
                at = (git / "HEAD").read_text(encoding="utf-8").strip().removeprefix("ref: ")
                if (git / at).is_file():
                    return (git / at).read_text(encoding="utf-8").strip()
                return at if re.fullmatch(r"\w{40}", at) else ""
        return ""

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
            raise MissingDependency(f"{message}. Get a tested version, or a newer amd-plugin: {self.how_to_get}")


@functools.cache
def _say_untested(distribution: str, version: str, tested: str) -> None:
    """Logs once that a version is not one of those that its adapter is tested with."""
    log.warning(
        "%s %s is not a tested version (%s): its methods are compared one by one, what they do inside is not",
        distribution, version, tested,
    )  # fmt: skip


def _version_of_checkout(package: str) -> str:
    """The version in the setup.py or pyproject.toml beside `package`; empty if there is none."""
    spec = importlib.util.find_spec(package)
    for folder in [*(spec.submodule_search_locations or [])][:1] if spec else []:
        for name in ("pyproject.toml", "setup.py"):
            file = Path(folder).parent / name
            text = file.read_text(encoding="utf-8") if file.is_file() else ""
            found = re.search(r"""^\s*version\s*=\s*["'](\d[\d.]*)["']""", text, re.M)
            if found:
                return found[1]
    return ""
