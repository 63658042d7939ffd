"""AMD as a plugin, the target of entry point ``amd`` in group ``distill_host``; a third party's plugin looks the same."""

from collections.abc import Callable, Mapping

from amd_plugin.hookspecs import Objective, hookimpl
from amd_plugin.imported import Imported


@hookimpl
def distill_objectives() -> Mapping[str, Callable[..., Objective]]:
    """The objective ``amd``."""
    return Imported({"amd": "amd_plugin.objectives.amd:AMDObjective"})
