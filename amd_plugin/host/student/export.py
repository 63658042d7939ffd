"""The finished student as a plain diffusers folder: the whole pipeline, the few-step scheduler in it, a model card.

`export` writes one from roles in memory, at the end of a run; `export_run` from any checkpoint of a run on disk.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import diffusers
from huggingface_hub import HfApi

from amd_plugin.choices import StudentFormat, Weights
from amd_plugin.config import ModelConfig
from amd_plugin.errors import InputError, RunError
from amd_plugin.host.student.load import load_student
from amd_plugin.host.student.model_card import write_card
from amd_plugin.models.backbone import Backbone
from amd_plugin.models.pretrained import DTYPES, quiet
from amd_plugin.models.roles import Role
from amd_plugin.plugins import PluginManager
from amd_plugin.recipe.loading import Recipe

LORA_FILE = "pytorch_lora_weights.safetensors"


def export(
    path: Path, student: Role, backbone: Backbone, recipe: Recipe, *,
    run: Path, step: int, how: StudentFormat = "auto", weights: Weights = "ema",
) -> None:  # fmt: skip
    """Writes the student as it is now to the folder `path`; replaces what was there.

    Args:
        run: folder of the run it comes from, for the model card's numbers, curves and samples.
        step: student updates it has had.
        how: ``full``, the pipeline with the student as its network; ``lora``, its adapter alone; ``auto``, the pipeline, and
            the adapter beside it where there is one.
        weights: which of its weights these are, for the card.

    Raises:
        InputError: for ``lora`` where the student has no adapter, or its pipeline loads none.
    """
    _check_format(how, recipe.config.model, backbone)
    draft = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    where, family, has_adapter = backbone.pretrained, backbone.family, student.adapter is not None
    if how != "lora":
        network: Any = student.merged().cpu()
        if where is None:
            network.save_pretrained(draft / "transformer")
        else:
            dtype = DTYPES[recipe.config.model.dtype]
            parts = {
                family.component: network if network.dtype == dtype else network.to(dtype),
                "scheduler": backbone.scheduler,
            }
            with quiet():
                where.pipeline(family, dtype, **parts).save_pretrained(draft, safe_serialization=True)
    backbone.scheduler.save_pretrained(draft / "scheduler")
    if where is not None and has_adapter and (save := _lora_saver(family)):
        save(draft, **{f"{family.component}_lora_layers": student.adapter_state_dict()}, weight_name=LORA_FILE)
    write_card(draft, backbone, recipe, run=run, step=step, weights=weights, adapter_alone=how == "lora")
    shutil.rmtree(path, ignore_errors=True)
    draft.rename(path)


def export_run(
    run: Path, plugins: PluginManager, output: Path | None = None, *,
    at: str | None = None, weights: Weights = "ema", how: StudentFormat = "auto",
) -> Path:  # fmt: skip
    """Exports a checkpoint of the run in `run`, whether it is finished or not.

    Args:
        output: the folder to write; by default ``student`` in the run's.
        at: a step, or a checkpoint's folder; by default the newest checkpoint.
        weights: the student's average, or its weights as they were trained.
        how: see `export`.

    Returns:
        The folder written.

    Raises:
        InputError: if there is no such run or checkpoint; nothing is touched then.
    """
    target = output or run / "student"
    if output is not None and output.exists() and not (output / "README.md").is_file() and any(output.iterdir()):
        raise InputError(f"--output {output}: is not empty and holds no exported student. Choose another folder")
    found = load_student(run, plugins, at)
    with found.with_weights(weights) as student:
        export(target, student, found.backbone, found.recipe, run=run, step=found.step, how=how, weights=weights)
    return target


def push(folder: Path, repository: str, *, private: bool = True) -> str:
    """Uploads an exported student to the hub, and returns its address; raises RunError where that fails."""
    api = HfApi()
    try:
        url = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=str(folder), commit_message="Student distilled with amd-plugin")
    except Exception as error:  # network, access and naming errors alike, of several libraries
        cause = " ".join(str(error).split())[:300]
        raise RunError(
            f"--push-to-hub {repository}: {type(error).__name__}: {cause}. {folder} is complete; try again"
        ) from error
    return str(url)


def _check_format(how: StudentFormat, config: ModelConfig, backbone: Backbone) -> None:
    if how != "lora":
        return
    if config.roles != "shared_base" and config.student != "lora":
        raise InputError("--format lora: the student was trained in full and has no adapter. Use full")
    if backbone.pretrained is None or _lora_saver(backbone.family) is None:
        raise InputError(f"--format lora: a {type(backbone.network).__name__} is in no pipeline that loads adapters. Use full")


def _lora_saver(family: Any) -> Any:
    return getattr(getattr(diffusers, family.pipeline), "save_lora_weights", None)
