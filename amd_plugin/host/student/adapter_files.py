"""A student's adapter as files: for diffusers, and for the programs that keep the names of a model's original code.

The metadata of both says what the adapter belongs to and how to sample with it.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, cast

import diffusers
from torch import Tensor

import amd_plugin
from amd_plugin.disk import at_home
from amd_plugin.errors import InputError
from amd_plugin.host.checkpoint import streamed
from amd_plugin.host.student.sampler_settings import SamplerSettings
from amd_plugin.models.backbone import Backbone
from amd_plugin.models.family import Elsewhere, Family
from amd_plugin.models.roles import Role
from amd_plugin.recipe.loading import Recipe

LORA_FILE = "pytorch_lora_weights.safetensors"
LONGEST = 200  # bytes of a recipe's name in a file's, which may have 255


def adapter_saver(backbone: Backbone) -> Any:
    """The pipeline class's function that writes an adapter; None where it has none."""
    if backbone.pretrained is None:
        return None
    return getattr(getattr(diffusers, cast("Family", backbone.family).pipeline), "save_lora_weights", None)


def comfyui_file(recipe: Recipe) -> str:
    """Name of the file for other programs, which show it in their lists of adapters.

    The recipe's name stands in the run's folder, which may be somebody else's: what is no name of a file is made one.
    """
    plain = re.sub(r"[/\\\x00-\x1f\x7f]", "_", recipe.name)
    short = plain.encode(errors="ignore")[:LONGEST].decode(errors="ignore")
    return f"{short}_comfyui.safetensors"


def write_adapter(folder: Path, student: Role, backbone: Backbone, recipe: Recipe, step: int) -> str | None:
    """Writes the adapter of `student` to `folder`, and returns the name of the file that other programs read, if there is one.

    Args:
        folder: an existing folder.
        student: a role with an adapter.
        backbone: the model that the adapter belongs to.
        recipe: the run's recipe.
        step: number of student updates.

    Raises:
        InputError: for a pipeline that loads no adapters.
    """
    save, family = adapter_saver(backbone), cast("Family", backbone.family)
    if save is None:
        raise InputError(f"--format lora: a {type(backbone.network).__name__} is in no pipeline that loads adapters. Use full")
    layers = {name: value.detach().cpu().contiguous() for name, value in student.adapter_state_dict().items()}
    convert = getattr(family, "adapter_elsewhere", None)
    elsewhere = Elsewhere(family.pipeline, family.pipeline, None) if convert is None else convert(layers)
    about = _metadata(elsewhere, backbone, recipe, step)

    def write(weights: dict[str, Tensor], path: str) -> None:
        streamed.write(Path(path), weights, about={"format": "pt", **about}, finite=False)

    save(folder, **{f"{family.component}_lora_layers": layers}, weight_name=LORA_FILE, save_function=write)
    if elsewhere.layers is None:
        return None if convert is None else LORA_FILE
    write(elsewhere.layers, str(folder / comfyui_file(recipe)))
    return comfyui_file(recipe)


def _metadata(elsewhere: Elsewhere, backbone: Backbone, recipe: Recipe, step: int) -> dict[str, str]:
    """Text only, as safetensors has it: kohya's keys (``ss_``), those of ModelSpec, and how to sample."""
    model, settings = recipe.config.model, SamplerSettings(backbone, recipe.config.model)
    base = model.student_from or model.path or type(backbone.network).__name__
    height, width = backbone.size[:2] if backbone.size is not None else (0, 0)
    rank = str(model.lora.rank)
    about = {
        "ss_network_module": "networks.lora", "ss_network_dim": rank, "ss_network_alpha": rank,
        "ss_base_model_version": elsewhere.base, "ss_sd_model_name": Path(base).name, "ss_output_name": recipe.name,
        "ss_steps": str(step), "ss_training_comment": settings.in_words,
        "modelspec.sai_model_spec": "1.0.1", "modelspec.architecture": elsewhere.architecture,
        "modelspec.implementation": "diffusers", "modelspec.title": recipe.name,
        "modelspec.resolution": f"{width}x{height}", "modelspec.usage_hint": settings.in_words,
        "base_model": Path(base).name if at_home(base).exists() else base,
        "rank": rank, "alpha": rank, "recommended_steps": str(model.student_steps),
        "recommended_timesteps": json.dumps(settings.timesteps), "recommended_scheduler": type(backbone.scheduler).__name__,
        "recommended_guidance_scale": "1.0", "software": f"amd-plugin {amd_plugin.__version__}",
    }  # fmt: skip
    if backbone.size is not None and backbone.size.frames > 1:
        about["frames"] = str(backbone.size.frames)
    return about
