"""Signs that a pipeline or a LoRA is a few-step student already, and so no teacher.

A student has its guidance built in. As a teacher it would be guided a second time, at noise levels it was never trained at.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from amd_plugin.disk import at_home
from amd_plugin.errors import OptionError
from amd_plugin.models.lora_files import LoraSource, recommended_steps

WORDS = (
    "lcm", "turbo", "lightning", "hyper[-_]?sd(?:xl)?", "flash", "schnell", "dmd2?", "tcd", "pcm", "rcm",
    "(?:step[-_]?)?distill(?:ed|ation)?", "few[-_]?steps?", "[1-8][-_]?steps?", "fastwan", "causvid", "accvid(?:eo)?",
    "lightx2v", "self[-_]?forcing",
)  # fmt: skip
NAMES = re.compile(rf"(?:^|[-_. ])((?:sdxl|sd|wan)?(?:{'|'.join(WORDS)}))(?=$|[-_. \d])", re.IGNORECASE)
SCHEDULERS = ("LCMScheduler", "TCDScheduler", "FlowMatchLCMScheduler")
TAGS = {"few-step", "distillation", "lcm", "turbo"}


def check_teacher(source: Any, scheduler: Any, config: Mapping[str, Any], lora: LoraSource | None) -> None:
    """Checks that a pipeline, and a LoRA for it, show no sign of a few-step student.

    Args:
        source: the pipeline, a `Pretrained`.
        scheduler: its scheduler.
        config: config of its network.
        lora: the teacher's LoRA.

    Raises:
        OptionError: for ``path`` or ``teacher_lora``, with the signs and what to do.
    """
    advice = "or set model.distilled_teacher to true if you mean it"
    if signs := pipeline_signs(source, scheduler, config):
        raise OptionError(
            "path", f"{source.path} looks like a few-step student: {'; '.join(signs)}. A teacher is guided and sampled in many "
            "steps, and a student's guidance is built in. Name the model it was distilled from as model.path, and this one as "
            f"model.student_from if students shall start from it; {advice}"
        )  # fmt: skip
    if lora is not None and (signs := lora_signs(lora)):
        raise OptionError(
            "teacher_lora", f"{lora.file.path} looks like a LoRA for few steps: {'; '.join(signs)}. Its guidance is built in. "
            f"Name it as model.student_lora if students shall start from it; {advice}"
        )  # fmt: skip


def pipeline_signs(source: Any, scheduler: Any, config: Mapping[str, Any]) -> list[str]:
    """Signs in the scheduler, the network's config, the model card and the names of a pipeline."""
    signs, kind, settings = [], type(scheduler).__name__, scheduler.config
    if kind in SCHEDULERS:
        signs.append(f"its scheduler is a {kind}")
    if settings.get("stochastic_sampling"):
        signs.append(f"its {kind} adds noise in every step (stochastic_sampling)")
    if settings.get("shift_terminal") and not settings.get("use_dynamic_shifting"):
        signs.append(f"its {kind} ends its steps early (shift_terminal)")
    trailing = settings.get("timestep_spacing") == "trailing" and settings.get("prediction_type") == "epsilon"
    if kind.startswith("Euler") and trailing and not settings.get("rescale_betas_zero_snr"):
        signs.append(f"its {kind} has trailing steps, as those of Turbo and Lightning do")
    embeddings = [key for key in ("guidance_embeds", "time_cond_proj_dim") if config.get(key)]
    signs += [f"its network has a guidance embedding ({key})" for key in embeddings]
    signs += _card_signs(source)
    names = (source.path, source.index().get("_name_or_path"), config.get("_name_or_path"))
    return signs + _name_signs(*names)


def lora_signs(lora: LoraSource) -> list[str]:
    """Signs in the metadata and the name of a LoRA."""
    about = lora.check()
    steps = recommended_steps(about)
    signs = [] if steps is None else [f"its metadata recommends {steps} steps"]
    return signs + _name_signs(lora.file.path, about.get("ss_output_name"), about.get("modelspec.title"))


def _name_signs(*names: Any) -> list[str]:
    """A sign for the first of `names` with a word of few-step models; of paths, the last part counts."""
    for name in filter(None, names):
        last = Path(str(name)).name
        if match := NAMES.search(last):
            return [f"'{match[1]}' is in its name, {last}"]
    return []


def _card_signs(source: Any) -> list[str]:
    folder = at_home(source.path)
    place = folder / "README.md" if folder.is_dir() else source.path
    if isinstance(place, Path) and not place.is_file():
        return []
    try:
        card = ModelCard.load(place, ignore_metadata_errors=True)
    except Exception:  # no card, no network, or a broken one: other signs have to do
        return []
    tags = TAGS & {str(tag).lower() for tag in card.data.get("tags") or []}
    signs = [f"its card has the tag {', '.join(sorted(tags))}"] if tags else []
    return ["its card says that amd-plugin distilled it"] if "Distilled with `amd-plugin`" in card.text else signs
