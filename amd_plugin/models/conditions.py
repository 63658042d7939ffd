"""From what is asked for to the tensors a network is conditioned on: labels as they are, prompts through text encoders.

Embedded prompts are kept on disk, by text encoder and prompt, so that the encoders can leave memory before training starts.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from amd_plugin.cache import root
from amd_plugin.errors import InputError
from amd_plugin.models.family import Condition

Encode = Callable[[Sequence[str]], Condition]


class Conditions(Protocol):
    """What the host asks for conditions."""

    def __call__(self, labels: Tensor, prompts: Callable[[], Sequence[str]]) -> Condition:
        """Of a batch asked for by `labels` [B], or by `prompts`, whichever the network listens to; on labels' device."""
        ...

    def uncond(self, labels: Tensor) -> Condition:
        """As many of the unconditional branch."""
        ...


class LabelConditions:
    """Class labels as they are; `num_classes` itself means "no label"."""

    def __init__(self, num_classes: int):
        self._num_classes = num_classes

    def __call__(self, labels: Tensor, prompts: Callable[[], Sequence[str]]) -> Condition:
        """``class_labels`` [B]."""
        return {"class_labels": labels}

    def uncond(self, labels: Tensor) -> Condition:
        """``class_labels`` [B] that mean none."""
        return {"class_labels": torch.full_like(labels, self._num_classes)}


class PromptConditions:
    """Prompts through a family's encoders, and what they gave before from disk.

    Args:
        text_parts: loads the pipeline with its text encoders; called when a prompt is not on disk yet.
        encode: ``(pipeline, prompts, negative)`` -> conditions, see `Family.encode_prompts`.
        negative: of the unconditional branch.
        made_of: JSON-able; what embeddings depend on beside the prompt: the encoders, lengths, sizes.
        keep: on disk. False holds the encoders in memory instead, for prompt sets too large to keep.
    """

    BATCH = 32

    def __init__(
        self,
        text_parts: Callable[[], Any],
        encode: Callable[[Any, Sequence[str], str | None], Condition],
        negative: str,
        made_of: dict[str, Any],
        keep: bool = True,
    ):
        digest = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]
        self._folder = root() / f"prompts-{digest}"
        self._text_parts, self._encode, self._negative, self._keep = text_parts, encode, negative, keep
        self._pipeline: Any = None
        self._uncond: Condition = {}
        self._device: torch.device = torch.device("cpu")

    def prepare(self, prompts: Iterable[str], device: torch.device, rank: int = 0, world: int = 1) -> None:
        """Embeds what is not on disk yet of `prompts`, then lets the encoders go; with ``keep=False``, only moves them.

        Args:
            prompts: all that will be asked for; read once, and never held as a whole.
            device: to embed on.
            rank, world: of this process, and how many there are. Prompts are shared out by their hash: what others have put
                on disk meanwhile changes nothing about whose a prompt is.
        """
        self._device = device
        self.uncond(torch.zeros(1))
        if not self._keep:
            self._loaded()
            return
        missing: dict[str, None] = {}
        for prompt in prompts:
            if int(_digest(prompt), 16) % world == rank and not self._path(prompt).is_file():
                missing[prompt] = None
            if len(missing) == self.BATCH:
                self._store(list(missing))
                missing.clear()
        if missing:
            self._store(list(missing))
        self._pipeline = None

    def __call__(self, labels: Tensor, prompts: Callable[[], Sequence[str]]) -> Condition:
        """The conditions of ``prompts()``."""
        asked = list(prompts())
        unique = list(dict.fromkeys(asked))
        embedded = self._kept(unique) if self._keep else self._encoded(unique)
        order = torch.tensor([unique.index(prompt) for prompt in asked])
        return {name: value[order.to(value.device)].to(labels.device) for name, value in embedded.items()}

    def uncond(self, labels: Tensor) -> Condition:
        """The negative prompt's, repeated."""
        if not self._uncond:
            found = (
                self._kept([self._negative], negative=True) if self._keep else self._encoded([self._negative], negative=True)
            )
            self._uncond = {name: value.cpu() for name, value in found.items()}
        repeat = lambda x: x.to(labels.device).expand(len(labels), *x.shape[1:])  # noqa: E731
        return {name: repeat(value) for name, value in self._uncond.items()}

    def _kept(self, prompts: Sequence[str], negative: bool = False) -> Condition:
        found = {prompt: _read(self._path(prompt, negative)) for prompt in prompts}
        if missing := [prompt for prompt, one in found.items() if one is None]:
            self._store(missing, negative)
            found |= {prompt: load_file(self._path(prompt, negative)) for prompt in missing}
        each = [one for one in found.values() if one is not None]
        return {name: torch.stack([one[name] for one in each]) for name in each[0]}

    def _store(self, prompts: Sequence[str], negative: bool = False) -> None:
        embedded = self._encoded(prompts, negative)
        for index, prompt in enumerate(prompts):
            path = self._path(prompt, negative)
            draft = path.with_suffix(f".{os.getpid()}.tmp")
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                one = {name: value[index].cpu().contiguous() for name, value in embedded.items()}
                save_file(one, draft)
                draft.replace(path)
            except (OSError, SafetensorError) as error:
                hint = "Free some space, set AMD_PLUGIN_CACHE, or set model.keep_embeddings to false"
                raise InputError(f"prompt embeddings {path}: cannot be written: {error}. {hint}") from error

    @torch.no_grad()
    def _encoded(self, prompts: Sequence[str], negative: bool = False) -> Condition:
        return self._encode(self._loaded(), [""] if negative else prompts, self._negative if negative else None)

    def _loaded(self) -> Any:
        self._pipeline = self._pipeline or self._text_parts()
        return self._pipeline.to(self._device) if list(self._pipeline.components.values()) else self._pipeline

    def _path(self, prompt: str, negative: bool = False) -> Path:
        digest = _digest(prompt)
        return self._folder / ("negative" if negative else digest[:2]) / f"{digest}.safetensors"


def _digest(prompt: str) -> str:
    return hashlib.sha256(prompt.encode()).hexdigest()


def _read(path: Path) -> Condition | None:
    """None where there is no such file, or one that a full disk or a crash cut short: it is made again."""
    try:
        return load_file(path)
    except (FileNotFoundError, SafetensorError):
        return None


def prompts_of(task: Any, labels: Tensor) -> Callable[[], Sequence[str]]:
    """What `labels` [B] ask for in words, read only when needed."""
    return partial(task.prompts, labels)
