"""Adaptive Matching Distillation (AMD) for the distillation toolkits people already use.

The names below are the public ones. They load on first use, so that importing the package costs
no torch: a host can discover plugins and print its help before any heavy import.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from amd_plugin import moved
from amd_plugin.hookspecs import hookimpl, hookspec

__version__ = "0.1.0"

moved.install()

if TYPE_CHECKING:
    from amd_plugin.maths import operators
    from amd_plugin.maths.advantage import group_advantage
    from amd_plugin.maths.losses import fake_score_loss, matching_loss
    from amd_plugin.maths.prediction import NoiseLevel, to_x0
    from amd_plugin.maths.sharpening import sharpening_weights
    from amd_plugin.maths.signals import Direction, Signals
    from amd_plugin.objectives.amd import AMDObjective
    from amd_plugin.objectives.dmd import DMDObjective
    from amd_plugin.plugins import get_plugin_manager

_HOME = {
    "AMDObjective": "objectives.amd",
    "DMDObjective": "objectives.dmd",
    "Direction": "maths.signals",
    "NoiseLevel": "maths.prediction",
    "Signals": "maths.signals",
    "fake_score_loss": "maths.losses",
    "get_plugin_manager": "plugins",
    "group_advantage": "maths.advantage",
    "matching_loss": "maths.losses",
    "sharpening_weights": "maths.sharpening",
    "to_x0": "maths.prediction",
}

__all__ = [
    "AMDObjective",
    "DMDObjective",
    "Direction",
    "NoiseLevel",
    "Signals",
    "__version__",
    "fake_score_loss",
    "get_plugin_manager",
    "group_advantage",
    "hookimpl",
    "hookspec",
    "matching_loss",
    "operators",
    "sharpening_weights",
    "to_x0",
]


def __getattr__(name: str) -> Any:
    if name == "operators":
        return import_module("amd_plugin.maths.operators")
    if name in _HOME:
        return getattr(import_module(f"amd_plugin.{_HOME[name]}"), name)
    raise AttributeError(f"module 'amd_plugin' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
