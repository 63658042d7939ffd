"""Labels and prompts as the tensors that networks are conditioned on: labels as they are, prompts through text encoders.

Embedded prompts are kept on disk, by text encoder and prompt, so that the encoders can leave memory before training starts.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from amd_plugin.atomic import replaced_file
from amd_plugin.cache import own_root, root
from amd_plugin.disk import regular
from amd_plugin.errors import InputError
from amd_plugin.json_files import read
from amd_plugin.models.family import Condition
from amd_plugin.models.prompt_lengths import Beyond, beyond, total, warn
from amd_plugin.models.quiet import quiet
from amd_plugin.tasks import Task

log = logging.getLogger(__name__)

CPU = torch.device("cpu")
CHECKSUM = "xxh3"  # key in the header of a file


class Conditions(Protocol):
    """What the host asks for conditions."""

    def __call__(self, labels: Tensor, prompts: Callable[[], Sequence[str]]) -> Condition:
        """The condition of a batch, from `labels` [B] or from B `prompts`, whichever the network takes; on labels' device."""
        ...

    def uncond(self, labels: Tensor) -> Condition:
        """The condition of the unconditional branch, for a batch of the size and on the device of `labels` [B]."""
        ...


class LabelConditions:
    """Class labels as they are; `num_classes` itself means "no label"."""

    def __init__(self, num_classes: int):
        self._num_classes = num_classes

    def __call__(self, labels: Tensor, prompts: Callable[[], Sequence[str]]) -> Condition:
        """``class_labels`` [B]."""
        return {"class_labels": labels}

    def uncond(self, labels: Tensor) -> Condition:
        """``class_labels`` [B], all of them "no label"."""
        return {"class_labels": torch.full_like(labels, self._num_classes)}


class EmbeddingFiles:
    """Embedded prompts on disk, one file for each prompt.

    Args:
        made_of: JSON-able; everything that embeddings depend on beside the prompt: encoders, lengths, sizes.

    Attributes:
        folder: the folder of the files: one for this process alone, with a warning, where this user may not enter that of all.
        shared: whether other processes find the files there.
    """

    def __init__(self, made_of: dict[str, Any]):
        digest = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]
        self.folder, self.shared = root() / f"prompts-{digest}", True
        if self.folder.is_dir() and not os.access(self.folder, os.R_OK | os.X_OK):
            made = "prompts are embedded for this process alone. Set AMD_PLUGIN_CACHE"
            log.warning("cache %s: cannot be used: it is somebody else's; %s", self.folder, made)
            self.folder, self.shared = own_root() / self.folder.name, False

    def path(self, prompt: str, negative: bool = False) -> Path:
        """The file of `prompt`; a prompt of the unconditional branch (`negative`) has a file of its own."""
        digest = _digest(prompt)
        return self.folder / ("negative" if negative else digest[:2]) / f"{digest}.safetensors"

    def read(self, prompt: str, negative: bool = False) -> Condition | None:
        """The condition of one prompt, without a batch dimension.

        None where there is no file, or one that was cut short or has changed: it is to be written again.
        """
        path = self.path(prompt, negative)
        try:
            with safe_open(regular(path), "pt") as file:
                expected = (file.metadata() or {}).get(CHECKSUM)
            condition = load_file(path)
        except (OSError, SafetensorError):
            return None
        if expected in (None, checksum_of(condition)):  # earlier versions wrote none
            return condition
        log.warning("prompt embeddings %s: the bytes are not those that were written; they are made anew", path)
        return None

    def write(self, prompts: Sequence[str], embedded: Condition, negative: bool = False) -> None:
        """Writes the conditions `embedded` [B, ...] of B `prompts`.

        Raises:
            InputError: where a file cannot be written.
        """
        for index, prompt in enumerate(prompts):
            path = self.path(prompt, negative)
            with self._writing(path), replaced_file(path, durable=False) as draft:
                condition = {name: value[index].cpu().contiguous() for name, value in embedded.items()}
                save_file(condition, draft, {CHECKSUM: checksum_of(condition)})

    @contextmanager
    def _writing(self, path: Path) -> Iterator[None]:
        try:
            yield
        except (OSError, SafetensorError) as error:
            hint = "Free some space, set AMD_PLUGIN_CACHE, or set model.keep_embeddings to false"
            raise InputError(f"prompt embeddings {path}: cannot be written: {error}. {hint}") from error

    def note_longer(self, found: Mapping[str, Mapping[str, Beyond]], negative: bool = False) -> None:
        """Notes which prompts are longer than encoders read, for runs that find their embeddings here.

        Raises:
            InputError: where a file cannot be written.
        """
        for prompt, parts in found.items():
            with self._writing(path := self._note(prompt, negative)), replaced_file(path, durable=False) as draft:
                draft.write_text(json.dumps(parts), encoding="utf-8")

    def noted_longer(self, prompt: str, negative: bool = False) -> dict[str, Beyond]:
        """What `note_longer` noted; empty for a prompt that fits, and with a warning where the note cannot be read."""
        note = self._note(prompt, negative)
        try:
            return read(note, dict[str, Beyond], "Whether its prompt is too long is not known") if note.exists() else {}
        except InputError as error:
            log.warning("prompt embeddings %s", error)
            return {}

    def _note(self, prompt: str, negative: bool) -> Path:
        return self.path(prompt, negative).with_suffix(".longer.json")


class PromptConditions:
    """Prompts through a family's text encoders, each prompt once.

    Args:
        text_parts: function that loads the pipeline with its text encoders; called when a prompt is not on disk yet.
        encode: ``(pipeline, prompts, negative)`` -> condition [B, ...], see `Family.encode_prompts`.
        negative: prompt of the unconditional branch.
        made_of: see `EmbeddingFiles`.
        limits: ``pipeline`` -> number of tokens that each of its encoders reads, by the name of its tokenizer.
        keep: whether embeddings are kept on disk. False keeps the encoders in memory instead, for prompt sets too large for
            the disk.

    Attributes:
        files: embeddings on disk.
        longer: what encoders do not see of the prompts prepared by this process.
    """

    BATCH = 32

    def __init__(
        self,
        text_parts: Callable[[], Any],
        encode: Callable[[Any, Sequence[str], str | None], Condition],
        negative: str,
        made_of: dict[str, Any],
        keep: bool = True,
        limits: Callable[[Any], Mapping[str, int]] = lambda pipeline: {},
    ):
        self.files = EmbeddingFiles(made_of)
        self._text_parts, self._encode, self._negative, self._keep = text_parts, encode, negative, keep
        self._limits = limits
        self.longer: dict[str, Beyond] = {}
        self._pipeline: Any = None
        self._uncond: Condition = {}
        self._device = CPU

    def prepare(self, prompts: Iterable[str], device: torch.device, rank: int = 0, world: int = 1) -> None:
        """Embeds those of `prompts` that are not on disk, then frees the encoders; with ``keep=False``, only moves them.

        Args:
            prompts: all prompts that will be asked for; read once, and never held as a whole.
            device: device of the encoders.
            rank, world: this process's rank and the number of processes. A prompt's hash decides which process embeds it,
                whatever others have put on disk meanwhile.
        """
        self._device = device
        self.uncond(torch.zeros(1))
        if not self.files.shared:
            rank, world = 0, 1
        if not self._keep:
            self._encoders()
            return
        found = {"": self.files.noted_longer(self._negative, negative=True)} if rank == 0 else {}
        missing: dict[str, None] = {}
        for prompt in prompts:
            if int(_digest(prompt), 16) % world != rank:
                continue
            if not os.path.isfile(self.files.path(prompt)):  # also where it may not be looked for
                missing[prompt] = None
            elif noted := self.files.noted_longer(prompt):
                found[_digest(prompt)] = noted
            if len(missing) == self.BATCH:
                found |= self._embed_to_disk(list(missing))
                missing.clear()
        if missing:
            found |= self._embed_to_disk(list(missing))
        self._pipeline = None
        self.longer = total(list(found.values()))

    def __call__(self, labels: Tensor, prompts: Callable[[], Sequence[str]]) -> Condition:
        """The condition of ``prompts()``."""
        batch = list(prompts())
        unique = list(dict.fromkeys(batch))
        embedded = self._embedded(unique)
        order = torch.tensor([unique.index(prompt) for prompt in batch])
        return {name: value[order.to(value.device)].to(labels.device) for name, value in embedded.items()}

    def uncond(self, labels: Tensor) -> Condition:
        """The negative prompt's condition, repeated."""
        if not self._uncond:
            self._uncond = {name: value.cpu() for name, value in self._embedded([self._negative], negative=True).items()}
        return {name: x.to(labels.device).expand(len(labels), *x.shape[1:]) for name, x in self._uncond.items()}

    def _embedded(self, prompts: Sequence[str], negative: bool = False) -> Condition:
        if not self._keep:
            return self._encoded(prompts, negative)
        conditions = {prompt: self.files.read(prompt, negative) for prompt in prompts}
        if missing := [prompt for prompt, condition in conditions.items() if condition is None]:
            self._embed_to_disk(missing, negative)
            conditions |= {prompt: load_file(self.files.path(prompt, negative)) for prompt in missing}
        each = [condition for condition in conditions.values() if condition is not None]
        return {name: torch.stack([condition[name] for condition in each]) for name in each[0]}

    def _embed_to_disk(self, prompts: Sequence[str], negative: bool = False) -> dict[str, dict[str, Beyond]]:
        """Writes embeddings, and returns what encoders did not see of the prompts that are too long, by digest."""
        embedded = self._encoded(prompts, negative)
        found = {prompt: parts for prompt, parts in zip(prompts, self._beyond(prompts), strict=True) if parts}
        # A note without an embedding is written again, an embedding without its note never.
        self.files.note_longer(found, negative)
        self.files.write(prompts, embedded, negative)
        return {_digest(prompt): parts for prompt, parts in found.items()}

    @torch.no_grad()
    def _encoded(self, prompts: Sequence[str], negative: bool = False) -> Condition:
        pipeline = self._encoders()
        if not (self._keep or self.longer) and (longer := total(self._beyond([self._negative] if negative else prompts))):
            # Prompts are not read before the run, so the warning comes with the first batch that has one.
            self.longer = longer
            warn(longer)
        with quiet():
            if negative:
                return self._encode(pipeline, [""], self._negative)
            # The last bit of an embedding depends on the batch. On a CPU, where batches save no time, each prompt is its own.
            size = 1 if self._device.type == "cpu" else len(prompts)
            parts = [self._encode(pipeline, prompts[i : i + size], None) for i in range(0, len(prompts), size)]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _beyond(self, prompts: Sequence[str]) -> list[dict[str, Beyond]]:
        pipeline = self._encoders()
        with quiet():
            return beyond(pipeline, prompts, self._limits(pipeline))

    def _encoders(self) -> Any:
        self._pipeline = self._pipeline or self._text_parts()
        return self._pipeline.to(self._device) if list(self._pipeline.components.values()) else self._pipeline


def prompts_of(task: Task, labels: Tensor) -> Callable[[], Sequence[str]]:
    """A function that returns the prompts of `labels` [B]: they are looked up only where a network reads prompts."""
    return partial(task.prompts, labels)


def checksum_of(tensors: Mapping[str, Tensor]) -> str:
    """The checksum of named tensors on the CPU, with their types and shapes."""
    digest = xxhash.xxh3_128()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _digest(prompt: str) -> str:
    return hashlib.sha256(prompt.encode()).hexdigest()
