"""The finished student as a plain diffusers folder: the whole pipeline, the few-step scheduler in it, a model card.

`export` writes one from roles in memory, at the end of a run; `export_run` from any checkpoint of a run on disk.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

from huggingface_hub import HfApi

from amd_plugin import plugin_files
from amd_plugin.atomic import remove_folder, replaced_folder
from amd_plugin.checksums import changed
from amd_plugin.choices import StudentFormat, Weights
from amd_plugin.config import ModelConfig
from amd_plugin.disk import at_home, dispensable
from amd_plugin.errors import InputError, RunError
from amd_plugin.host.running.student_files import FILE, check_replaceable, list_files
from amd_plugin.host.student.adapter_files import LORA_FILE, adapter_saver, write_adapter
from amd_plugin.host.student.load import load_student
from amd_plugin.host.student.model_card import write_card
from amd_plugin.models.backbone import Backbone
from amd_plugin.models.dtypes import DTYPES, cast_weights
from amd_plugin.models.family import Family
from amd_plugin.models.quiet import quiet
from amd_plugin.models.roles import Role
from amd_plugin.plugins import PluginManager
from amd_plugin.recipe.loading import Recipe
from amd_plugin.threads import one_thread

log = logging.getLogger(__name__)

# Folder of the adapter beside a pipeline. The pipeline's network has it merged, and no loader that is pointed at the pipeline
# finds it there and applies it a second time.
ADAPTER_FOLDER = "lora"

__all__ = ["ADAPTER_FOLDER", "LORA_FILE", "export", "export_run", "push", "with_plugins"]


def export(
    path: Path, student: Role, backbone: Backbone, recipe: Recipe, *,
    run: Path, step: int, how: StudentFormat = "auto", weights: Weights = "ema",
) -> None:  # fmt: skip
    """Writes the student with its current weights to the folder `path`, in place of an earlier export that may be there.

    Args:
        path: the folder to write.
        student: the student's role.
        backbone: the model that the student was distilled from.
        recipe: the run's recipe.
        run: folder of the run, for the model card's numbers, curves and samples.
        step: number of student updates.
        how: ``full``, the pipeline with the student as its network; ``lora``, its adapter alone; ``auto``, the pipeline, and
            the adapter alone in its folder ``lora`` where there is one.
        weights: kind of the current weights, for the card.

    Raises:
        InputError: for ``lora`` where the student has no adapter, or its pipeline loads none; for others' files in `path`.
    """
    check_replaceable(path)
    _check_format(how, recipe.config.model, backbone)
    adapter = student.adapter is not None and adapter_saver(backbone) is not None and how != "full"
    with replaced_folder(path) as draft:
        card = partial(_write_card, shown=path, run=run, backbone=backbone, recipe=recipe, step=step, weights=weights)
        if how != "lora":
            _save_network(draft, student, backbone, recipe.config.model)
            backbone.scheduler.save_pretrained(draft / "scheduler")
            card(draft, merged=student.adapter is not None)
        if adapter:
            folder = draft if how == "lora" else draft / ADAPTER_FOLDER
            folder.mkdir(exist_ok=True)
            comfyui = write_adapter(folder, student, backbone, recipe, step)
            backbone.scheduler.save_pretrained(folder / "scheduler")
            card(folder, adapter_alone=True, comfyui=comfyui)
        _forget_places(draft)
        list_files(draft)


def _forget_places(folder: Path) -> None:
    """Removes the place that each part was read from, which libraries note in its config, where it is on this machine."""
    for file in folder.rglob("*.json"):
        content = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(content, dict) and at_home(str(content.get("_name_or_path", ""))).is_absolute():
            del content["_name_or_path"]
            file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _write_card(folder: Path, shown: Path, run: Path, **about: Any) -> None:
    """Writes the card; where the disk has no room for it, the student is complete all the same."""
    later = f"the student has no model card; later: {plugin_files.command('export', run)}"
    with dispensable(folder / "README.md", later, shown / "README.md"):
        write_card(folder, run=run, **about)


def _save_network(folder: Path, student: Role, backbone: Backbone, config: ModelConfig) -> None:
    """The student's network in the pipeline it comes from, or alone."""
    network: Any = student.merged().cpu()
    if backbone.pretrained is None:
        network.save_pretrained(folder / "transformer")
        return
    dtype, family = DTYPES[config.dtype], cast("Family", backbone.family)
    cast_weights(network, dtype)
    parts = {family.component: network, "scheduler": backbone.scheduler}
    # As it was read, in fp32: what reads the folder rounds it if it wants to, and several overflow in half precision.
    parts["vae"] = backbone.autoencoders[0]
    with quiet():
        backbone.pretrained.pipeline(family, dtype, **parts).save_pretrained(folder, safe_serialization=True)


def export_run(
    run: Path, plugins: PluginManager, output: Path | None = None, *,
    at: str | None = None, weights: Weights = "ema", how: StudentFormat = "auto",
) -> Path:  # fmt: skip
    """Exports a checkpoint of the run in the folder `run`, whether the run is finished or not.

    Args:
        run: the run's folder.
        plugins: registry of the recipe's plugins.
        output: the folder to write; by default ``student`` in the run's folder.
        at: a step, or a checkpoint's folder; by default the newest checkpoint.
        weights: ``ema``, the student's averaged weights, or ``raw``, its trained weights.
        how: see `export`.

    Returns:
        The folder written.

    Raises:
        InputError: if there is no such run or checkpoint, or files of others are in the folder; nothing is touched then.
    """
    target = run / "student" if output is None else _followed(output)
    check_replaceable(target, "" if output is None else "--output ")
    student = load_student(run, plugins, at)
    # Merging an adapter computes, and a student must not depend on the cores that are free.
    with one_thread(student.recipe.config.model.network is not None), student.with_weights(weights) as role:
        export(target, role, student.backbone, student.recipe, run=run, step=student.step, how=how, weights=weights)
    return target


def _followed(output: Path) -> Path:
    """The folder that the user means; a link that was named leads to it, and stays a link."""
    try:
        return output.resolve() if output.is_symlink() else output.absolute()
    except (OSError, RuntimeError) as error:
        raise InputError(f"--output {output}: is a link that leads nowhere. Choose another folder") from error


def with_plugins(path: Path, plugins: PluginManager, recipe: Recipe, write: Callable[[], None]) -> None:
    """Calls the plugins' `distill_export` on the student in `path`, and undoes what they do to its files beside adding some.

    Args:
        path: folder of the student.
        plugins: registry of the hooks.
        recipe: the run's recipe, for the hooks.
        write: writes the student anew.
    """
    names = [implementation.plugin_name for implementation in plugins.hook.distill_export.get_hookimpls()]
    if not names:
        return
    before = list_files(path, complete=False)  # a run that is killed now writes the student again, in place of what they left
    plugins.hook.distill_export(path=path, options=recipe.as_dict())
    problem = changed(path, before)
    if not problem:
        list_files(path)
        return
    if path.is_symlink() or path.is_file():
        path.unlink()
    else:
        remove_folder(path)
    write()
    hooks = f"distill_export of plugin {' or '.join(names)}"
    log.warning("%s: %s after %s; the student was written again, without anything of theirs", path, problem, hooks)


def push(folder: Path, repository: str, *, private: bool = True) -> str:
    """Uploads the exported student in `folder` to the hub, and returns its address.

    Of a pipeline, the adapter in its folder ``lora`` stays here: on the hub, loaders look for adapters in all folders, and
    would apply it to a network that has it already. So does the list of files, which is of this folder.

    Raises:
        RunError: where the upload fails.
    """
    api = HfApi()
    try:
        url = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repository, folder_path=str(folder), commit_message="Student distilled with amd-plugin",
            ignore_patterns=[f"{ADAPTER_FOLDER}/*", FILE],
        )  # fmt: skip
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
    if adapter_saver(backbone) is None:
        raise InputError(f"--format lora: a {type(backbone.network).__name__} is in no pipeline that loads adapters. Use full")
