"""AMD as a plugin, the target of entry point ``amd`` in group ``distill_host``; a third party's plugin looks the same."""

from collections.abc import Callable, Mapping

from amd_plugin.hookspecs import Objective, hookimpl


@hookimpl
def distill_objectives() -> Mapping[str, Callable[..., Objective]]:
    """The objective ``amd``."""
    from amd_plugin.objectives.amd import AMDObjective

    return {"amd": AMDObjective}
