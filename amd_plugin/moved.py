"""Imports of modules and names from where they were before version 0.1.0, with a warning that gives the new place."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_MATHS = ("adversarial", "advantage", "coherence", "diagnostics", "losses", "prediction", "sharpening", "signals")
_REWARDS = ("aesthetic", "classifier", "clip", "controls", "hps", "image_reward", "video", "vlm")

MOVED = {
    **{f"amd_plugin.{name}": f"amd_plugin.maths.{name}" for name in _MATHS},
    **{f"amd_plugin.rewards.{name}": f"amd_plugin.rewards.builtin.{name}" for name in _REWARDS},
    "amd_plugin.adaptive": "amd_plugin.objectives.amd",
    "amd_plugin.objective": "amd_plugin.objectives.dmd",
    "amd_plugin.reward_statistics": "amd_plugin.objectives.reward_statistics",
    "amd_plugin.builtin": "amd_plugin.default_plugins.amd",
    "amd_plugin.adapters.surface": "amd_plugin.adapters.compatibility",
    "amd_plugin.models.mlp": "amd_plugin.models.embedded.mlp",
    "amd_plugin.tasks.prompts": "amd_plugin.data.prompts",
    "amd_plugin.tasks.prompt_rows": "amd_plugin.data.prompt_rows",
}
_ADAPTERS = {
    "OFFERS": "amd_plugin.adapters.offers",
    "adaptive_objective": "amd_plugin.adapters.host_objective",
    "require_fit": "amd_plugin.adapters.host_objective",
    "make_reward": "amd_plugin.adapters.named_rewards",
}
MOVED_NAMES = {
    "amd_plugin.adapters.bridge": {**_ADAPTERS, "Steering": "amd_plugin.adapters.steering"},
    "amd_plugin.adapters.steering": _ADAPTERS,
    "amd_plugin.adapters.modelopt": {"AMDDiffusionRecipe": "amd_plugin.adapters.modelopt_automodel"},
}


class _Moved(MetaPathFinder, Loader):
    """An importer that returns the module of the new name for an old name."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:  # fmt: skip
        return ModuleSpec(fullname, self) if fullname in MOVED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        new = MOVED[spec.name]
        warnings.warn(f"{spec.name} is now {new}; the old name goes with version 0.2", FutureWarning, stacklevel=2)
        module = import_module(new)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec  # the import system has just replaced it by the old name's


def install() -> None:
    """Makes the old names importable. The importer comes last, so existing modules take precedence."""
    if not any(isinstance(finder, _Moved) for finder in sys.meta_path):
        sys.meta_path.append(_Moved())


def names_of(module: str) -> Callable[[str], Any]:
    """The `__getattr__` of a `module`, for names that have left it."""

    def found(name: str) -> Any:
        home = MOVED_NAMES[module].get(name)
        if home is None:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        warnings.warn(f"{module}.{name} is now in {home}; the old place goes with version 0.2", FutureWarning, stacklevel=2)
        return getattr(import_module(home), name)

    return found
