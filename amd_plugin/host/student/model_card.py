"""The model card of an exported student: usage, held-out metrics, recipe and base model."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, PackageLoader
from matplotlib.figure import Figure

from amd_plugin.atomic import replaced_file, write_bytes, write_text
from amd_plugin.config import LoraFile
from amd_plugin.disk import at_home
from amd_plugin.errors import InputError
from amd_plugin.host.evaluation.pictures import as_written, drawable, read_picture
from amd_plugin.host.running import run_log
from amd_plugin.host.running.run_description import about as run_about
from amd_plugin.host.student.adapter_files import LORA_FILE
from amd_plugin.host.student.sampler_settings import SamplerSettings
from amd_plugin.models.backbone import Backbone
from amd_plugin.models.family import Family
from amd_plugin.recipe.loading import Recipe

_TEMPLATES = Environment(loader=PackageLoader("amd_plugin", "templates"), autoescape=False, trim_blocks=True)  # noqa: S701 (Markdown)

log = logging.getLogger(__name__)

# Of the base: a key of ours -> the field of its card on the hub, where a licence that the hub does not know is "other".
LICENCE = {"licence": "license", "licence_name": "license_name", "licence_link": "license_link"}
PLACE = re.compile(r"(file:/)?(/|~|[A-Za-z]:\\).*")  # of a file on some machine


def write_card(
    folder: Path, backbone: Backbone, recipe: Recipe, *, run: Path, step: int, weights: str,
    adapter_alone: bool = False, comfyui: str | None = None, merged: bool = False,
) -> None:  # fmt: skip
    """Writes ``README.md``, and the pictures it shows, beside the student in `folder`.

    Args:
        folder: the exported student.
        backbone: the model that the student was distilled from.
        recipe: the run's recipe.
        run: folder of the run: its metrics, samples and ``run.json``.
        step: number of student updates.
        weights: ``ema`` or ``raw``. Held-out metrics are shown only where exactly this student was evaluated.
        adapter_alone: whether the folder holds only the adapter for a base pipeline.
        comfyui: the adapter's file for other programs; None where there is none.
        merged: whether an adapter is merged into the pipeline's network.
    """
    config, family = recipe.config, cast("Family", backbone.family)
    lines = run_log.read(run / "metrics.jsonl") if (run / "metrics.jsonl").is_file() else []
    about = run_about(run) if (run / "run.json").is_file() else None
    held_out = {
        key.removeprefix("held_out/"): value
        for line in lines if line["step"] == step and weights == "ema"
        for key, value in line.items() if key.startswith("held_out/")
    }  # fmt: skip
    first = recipe.task.prompts(recipe.task.balanced_labels(config.evaluate.samples)[:1])[0]
    picture = _copy_picture(run, step, folder)
    call = (
        {}
        if backbone.size is None
        else family.sampling(first, backbone.size) | {"num_inference_steps": config.model.student_steps}
    )
    noise = ""
    if getattr(family, "rounds_frames_up", False):
        # The exact shape: the pipeline would round the number of frames up.
        noise = f", latents=torch.randn({', '.join(map(str, (1, *backbone.sample_shape)))})"
    # What the student's first weights are of: the teacher, with its adapter, or a student of their own.
    own, model = config.model.student_from is not None, config.model
    base = _base(model.student_from, None) if own else _base(model.path, model.revision)
    card = _TEMPLATES.get_template("model_card.md.j2").render(
        metadata=_metadata(recipe, backbone, base, held_out, adapter_alone).to_yaml(),
        recipe=recipe, step=step, weights=weights, held_out=held_out, about=about,
        samples=picture,
        curves=_draw_curves(lines, folder / "curves.png"),
        pipeline=None if backbone.pretrained is None else family.pipeline,
        network=type(backbone.network).__name__,
        shape=", ".join(map(str, backbone.sample_shape)),
        scheduler=type(backbone.scheduler).__name__,
        call=", ".join(f"{name}={value!r}" for name, value in call.items()) + noise,
        dtype=_load_dtype(config.model.dtype, getattr(family, "fp32_autoencoder", False)),
        video=backbone.pretrained is not None and family.video,
        adapter_alone=adapter_alone, comfyui=comfyui, lora_file=LORA_FILE, merged=merged,
        teacher_lora=None if own else _teacher_lora(model.teacher_lora),
        sampler=None if comfyui is None else SamplerSettings(backbone, config.model),
        base=base,
        credits=getattr(recipe.task, "credits", ""),
        torch=torch.__version__,
        settings=yaml.safe_dump(without_places(recipe.as_dict()), sort_keys=False),
    )  # fmt: skip
    write_text(folder / "README.md", re.sub(r"\n{3,}", "\n\n", card))


def _copy_picture(run: Path, step: int, folder: Path) -> str | None:
    """Copies the run's picture of this step to `folder`; its name there, or None where there is no picture."""
    path = next((run / "samples").glob(f"step-{step:06d}.*"), None)
    if path is None:
        return None
    try:
        content, kind = read_picture(path)
    except InputError as error:
        log.warning("%s; the model card goes without it", error)
        return None
    write_bytes(folder / f"samples.{kind}", content)
    return f"samples.{kind}"


def without_places(value: Any) -> Any:
    """A recipe's plain values without the folders of this machine: of a path, its last part is left."""
    if isinstance(value, Mapping):
        return {key: without_places(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [without_places(entry) for entry in value]
    if isinstance(value, str) and (PLACE.match(value) or ("/" in value and Path(value).exists())):
        return next((part for part in reversed(re.split(r"[/\\]", value)) if part), "")
    return value


def _metadata(
    recipe: Recipe, backbone: Backbone, base: Mapping[str, str] | None, held_out: Mapping[str, float], adapter_alone: bool
) -> ModelCardData:
    """What the hub and its tools read of a card: kind of model, base, tags and held-out metrics."""
    task = None if backbone.pretrained is None else _hub_task(cast("Family", backbone.family))
    data, hub = recipe.config.data, base["hub"] if base else ""
    own = "" if data.task != "prompts" else Path(str(data.options.get("source", ""))).name
    results = [
        EvalResult(
            task_type=task or "other", dataset_type=data.task, dataset_name=own or data.task, metric_type=name,
            metric_value=round(value, 6), metric_name=f"{name}, held out",
        )
        for name, value in held_out.items()
    ]  # fmt: skip
    relation: dict[str, Any] = {"base_model_relation": "adapter" if adapter_alone else "finetune"} if hub else {}
    licence: dict[str, Any] = {field: (base or {}).get(key) or None for key, field in LICENCE.items()}
    tags = ["amd-plugin", "distillation", "distribution-matching", "few-step", recipe.config.objective.name]
    return ModelCardData(
        library_name="diffusers", base_model=hub or None, pipeline_tag=task, **licence,
        tags=tags + (["lora"] if adapter_alone else []), model_name=f"{recipe.name} student" if results else None,
        eval_results=results or None, **relation,
    )  # fmt: skip


def _hub_task(family: Family) -> str | None:
    """The hub's name of what a family's pipeline does; None where the hub has none, as for images of a class."""
    shapes = family.condition_shapes(1) if hasattr(family, "condition_shapes") else {}
    if "class_labels" in shapes:
        return None
    return "text-to-video" if family.video else "text-to-image"


def _draw_curves(lines: list[dict[str, Any]], path: Path) -> bool:
    """Draws training rewards and held-out metrics over the run to `path`; returns False where there is nothing to draw."""
    keys = sorted({key for line in lines for key in line if key.startswith(("held_out/", "reward/"))})
    points = {key: [(line["step"], line[key]) for line in lines if key in line] for key in keys}
    drawn = {key: values for key, values in points.items() if len(values) > 1}
    if not drawn:
        return False
    columns = min(4, len(drawn))
    rows = -(-len(drawn) // columns)
    figure = Figure(figsize=(3 * columns, 2.4 * rows), layout="constrained")
    for axes, (key, values) in zip(figure.subplots(rows, columns, squeeze=False).flatten(), drawn.items(), strict=False):
        steps, heights = zip(*values, strict=True)
        axes.plot(
            steps, drawable(np.array(heights, dtype=float)), color="#0072B2" if key.startswith("held_out/") else "#D55E00"
        )
        kind, _, name = key.partition("/")
        axes.set_title(f"{name} ({'held out' if kind == 'held_out' else 'training reward'})", fontsize=9)
        axes.set_xlabel("student updates", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.locator_params(nbins=4)  # laying out more takes half a second of every run's end
    with replaced_file(path) as draft:
        as_written(figure).savefig(draft, dpi=110)
    return True


def _load_dtype(dtype: str, fp32_autoencoder: bool) -> str:
    """``torch_dtype`` of the card's code: the recipe's, with an autoencoder in fp32 as in training where the pipeline can."""
    name = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}[dtype]
    mixed = fp32_autoencoder and dtype != "fp32"
    return f'{{"vae": torch.float32, "default": torch.{name}}}' if mixed else f"torch.{name}"


def _teacher_lora(file: LoraFile | None) -> dict[str, Any] | None:
    """Name, weight and ``load_lora_weights``'s arguments of the LoRA that is merged into the teacher."""
    if file is None:
        return None
    path = at_home(file.path)
    if path.exists():
        return {"name": path.name, "weight": file.weight, "load": f'"{path.name}"'}
    owner, name, *inside = file.path.split("/", 2)
    more = "".join(f', weight_name="{part}"' for part in inside)
    return {"name": file.path, "weight": file.weight, "load": f'"{owner}/{name}"{more}'}


def _base(path: str | None, revision: str | None) -> dict[str, str] | None:
    """Name, hub id, revision and licence of the pipeline distilled from; None for networks made here."""
    if path is None:
        return None
    folder = at_home(path)
    on_hub = not folder.is_dir()
    try:
        card = ModelCard.load(path if on_hub else folder / "README.md", ignore_metadata_errors=True).data
        licence = {key: str(card.get(field) or "") for key, field in LICENCE.items()}
    except Exception:  # no card, no network, or a broken card: the licence is unknown, and the student's card says so
        licence = dict.fromkeys(LICENCE, "")
    hub = path if on_hub else ""
    return {"name": hub or folder.name, "hub": hub, "revision": revision or "", **licence}
