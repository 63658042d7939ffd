"""Configs of some public models, shipped so that runs can be planned, and checked by `--dry-run`, without a network.

Under ``shipped_configs/`` lie folders like those on the hub, with configs only and no weights. Tests pin the sizes to the
published parameter counts.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import huggingface_hub

from amd_plugin.config import ModelConfig
from amd_plugin.disk import at_home

FOLDER = Path(__file__).with_name("shipped_configs")
PIPELINES = {
    "stabilityai/stable-diffusion-xl-base-1.0": "sdxl",
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": "wan21_1_3b",
    "Wan-AI/Wan2.1-T2V-14B-Diffusers": "wan21_14b",
}
ENCODERS = {
    "yuvalkirstain/PickScore_v1": "clip_vit_h_14",
    "laion/CLIP-ViT-H-14-laion2B-s32B-b79K": "clip_vit_h_14",
    "openai/clip-vit-large-patch14": "clip_vit_l_14",
}


class Source(NamedTuple):
    """A recipe's model section whose configs can be read.

    Attributes:
        model: the section, with a local path where shipped configs are used.
        words: where the configs come from, for people.
    """

    model: ModelConfig
    words: str


def with_configs(model: ModelConfig) -> Source:
    """`model` itself; or with shipped configs, where its pipeline is on the hub and the hub does not answer."""
    if model.path is None:
        return Source(model, f"made here ({model.network})")
    if at_home(model.path).exists():
        return Source(model, f"folder {model.path}")
    if model.path not in PIPELINES:
        return Source(model, f"hub, {model.path}")
    index = huggingface_hub.try_to_load_from_cache(model.path, "model_index.json", revision=model.revision)
    reason = None if isinstance(index, str) else hub_problem(model.path, model.revision)
    if reason is None:
        return Source(model, f"hub, {model.path}")
    shipped = model.model_copy(update={"path": str(FOLDER / PIPELINES[model.path]), "revision": None})
    return Source(shipped, f"configs of {model.path} that come with amd-plugin, as the hub cannot be reached ({reason})")


def hub_problem(repository: str, revision: str | None = None) -> str | None:
    """The reason why the hub gives no information on `repository`; None if it does. Waits three seconds at most."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        return "HF_HUB_OFFLINE is set"
    try:
        huggingface_hub.HfApi().model_info(repository, revision=revision, timeout=3)
    except Exception as error:  # connection, access and name errors come from several libraries
        return type(error).__name__
    return None
