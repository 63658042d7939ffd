"""AMD in NVIDIA NeMo AutoModel's diffusion driver, which trains ModelOpt's pipelines: a mix-in over the driver's recipe.

The driver is an example in ModelOpt's repository and not part of its wheel, so it is not imported here.
"""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from amd_plugin.adapters.modelopt import Adaptive, adaptive
from amd_plugin.adapters.run_state import restoring
from amd_plugin.atomic import write_text
from amd_plugin.errors import InputError

log = logging.getLogger(__name__)


# Arguments of `AMDPipeline` that YAML can give; other options are the objective's.
_IN_PYTHON = {"discriminator", "decode", "amd", "objective", "accelerator", "sharding", "plugins"}
_ARGUMENTS = [parameter.name for parameter in inspect.signature(Adaptive.__init__).parameters.values()
              if parameter.kind is parameter.KEYWORD_ONLY and parameter.name not in _IN_PYTHON]  # fmt: skip


class AMDDiffusionRecipe:
    """A mix-in that adds AMD to the NeMo AutoModel driver.

        class Recipe(AMDDiffusionRecipe, DMD2DiffusionRecipe): ...

    Options are read from ``dmd2.amd`` of the driver's YAML: those of `AMDObjective`, and the arguments of `AMDPipeline` that
    are no Python objects, such as ``reward``, ``rollouts`` and ``accumulation``.
    """

    STATE = "amd_state.json"

    def amd_decode(self) -> Callable[[Tensor], Tensor] | None:
        """A function of latents to media, None for no reward. Override it, as the driver loads no autoencoder."""
        return None

    def _resolve_pipeline_cls(self) -> type:
        return adaptive(super()._resolve_pipeline_cls())  # type: ignore[misc]

    def _resolve_pipeline_kwargs(self, pipeline_cls: type) -> dict[str, Any]:
        options = self.cfg.get("dmd2.amd", None) or {}  # type: ignore[attr-defined]
        options = dict(options.to_dict() if hasattr(options, "to_dict") else options)
        if in_python := sorted(options.keys() & _IN_PYTHON):
            raise InputError(f"dmd2.amd.{in_python[0]}: is set in Python, not in the driver's YAML. Leave it out")
        arguments = {name: options.pop(name) for name in _ARGUMENTS if name in options}
        for name in ("rung_conditioning", "advantage_guidance"):
            if arguments.get(name) or options.get(name):
                message = (
                    "adds weights to the fake score, whose optimizer the driver has made by then, so that they stay untrained"
                )
                raise InputError(f"dmd2.amd.{name}: {message}. Leave it out")
        decode = self.amd_decode()
        if arguments.get("reward") is not None and decode is None:
            raise InputError("dmd2.amd.reward: needs media, but this recipe has no amd_decode. Override it to decode latents")
        host_arguments = super()._resolve_pipeline_kwargs(getattr(pipeline_cls, "host", pipeline_cls))  # type: ignore[misc]
        return {**host_arguments, **arguments, "amd": options, "decode": decode}

    def _save_dmd_extras(self, path: str) -> None:
        super()._save_dmd_extras(path)  # type: ignore[misc]
        if int(torch.distributed.get_rank() if torch.distributed.is_initialized() else 0) == 0:
            state = self._dmd_pipeline.state_dict()  # type: ignore[attr-defined]
            write_text(Path(path, self.STATE), json.dumps(state))

    def _restore_dmd_extras(self, restore_from: str | None) -> None:
        super()._restore_dmd_extras(restore_from)  # type: ignore[misc]
        if restore_from is not None and (saved := Path(restore_from, self.STATE)).exists():
            with restoring(saved, dict[str, Any]) as state:
                self._dmd_pipeline.load_state_dict(state)  # type: ignore[attr-defined]
        elif restore_from is not None:
            log.warning("%s has no %s: AMD's running statistics start anew", restore_from, self.STATE)
