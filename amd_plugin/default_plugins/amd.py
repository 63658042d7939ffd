"""AMD as a plugin: what the entry point ``amd`` of group ``distill_host`` points at. A third party's looks just like it."""

from collections.abc import Callable, Mapping

from amd_plugin.hookspecs import Objective, hookimpl


@hookimpl
def distill_objectives() -> Mapping[str, Callable[..., Objective]]:
    """``amd``."""
    from amd_plugin.objectives.amd import AMDObjective

    return {"amd": AMDObjective}
