"""What the host brings itself, as a plugin of itself: plain objectives, the rewards of its tasks, a teacher left whole."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from amd_plugin.hookspecs import Objective, hookimpl


@hookimpl
def distill_objectives() -> Mapping[str, Callable[..., Objective]]:
    """``dmd`` and ``decoupled_dmd``."""
    from amd_plugin.objective import DMDObjective, decoupled_dmd

    return {"dmd": DMDObjective, "decoupled_dmd": decoupled_dmd}


@hookimpl(trylast=True)
def distill_make_objective(name: str, factory: Callable[..., Objective], options: Mapping[str, Any]) -> Objective:
    """The factory itself."""
    return factory(**options)


@hookimpl
def distill_rewards() -> Mapping[str, Callable[..., Any]]:
    """``classifier``, the tasks' own, and ``random``, a control."""
    from amd_plugin.rewards import classifier, controls

    return {"classifier": classifier.ClassifierReward, "random": controls.RandomReward}


@hookimpl(trylast=True)
def distill_prepare_frozen(module: nn.Module, accelerator: Any) -> nn.Module:
    """A whole copy on this process's device."""
    return module.to(accelerator.device)
