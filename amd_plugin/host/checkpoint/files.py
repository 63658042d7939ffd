"""Checkpoints without pickle: safetensors and JSON, complete or not there at all.

A checkpoint is a folder ``step-NNNNNN`` that is written under another name and renamed once its manifest, written last,
lists every file with its size. Random numbers have no state to save: seed and step determine them (`amd_plugin.randomness`).
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from amd_plugin.atomic import replaced_folder
from amd_plugin.errors import InputError
from amd_plugin.host.checkpoint import streamed
from amd_plugin.models.lazy_weights import LazyTensor, materialize

log = logging.getLogger(__name__)

FORMAT = 1


def save(
    folder: Path, step: int, tensors: dict[str, dict[str, Any]], state: dict[str, Any], keep: int, *, writes: bool = True,
    about: Mapping[str, str] | None = None,
) -> Path:  # fmt: skip
    """Writes ``folder/step-NNNNNN`` and removes all but the newest `keep` checkpoints.

    Args:
        folder: the folder of the run's checkpoints.
        step: number of student updates.
        tensors: file stem -> state dict of a module or an optimizer. Where one holds a `LazyTensor`, all processes call this.
        state: JSON-able rest of the state.
        keep: number of checkpoints to keep.
        writes: whether this process writes; the others only take part in gathering tensors.
        about: words about the run for the header of every file, beside the step.

    Returns:
        The checkpoint's folder.

    Raises:
        OSError: where it cannot be written, after all tensors have been gathered.
    """
    path = folder / f"step-{step:06d}"
    failure: OSError | None = None
    rest: dict[str, Any] = {}
    header = {"format": "pt", "step": str(step), **(about or {})}
    with ExitStack() as stack:
        draft = path
        try:
            if writes:
                draft = stack.enter_context(replaced_folder(path))
        except OSError as error:  # the other processes gather tensors with this one all the same
            failure = error
        for name, state_dict in tensors.items():
            flat, rest[name] = _split(state_dict)
            try:
                streamed.write(draft / f"{name}.safetensors", flat, writes=writes and failure is None, about=header)
            except OSError as error:
                failure = error
        if failure is not None:
            raise failure
        if not writes:
            return path
        write_json(draft / "state.json", {"step": step, "rest": rest, **state})
        sizes = {file.name: file.stat().st_size for file in sorted(draft.iterdir())}
        write_json(draft / "manifest.json", {"format": FORMAT, "files": sizes})
    for old in available(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return path


def load(path: Path, *, lazy: bool = False) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """(tensors, state) as they were given to `save`.

    Args:
        lazy: whether tensors are returned as `LazyTensor`, each to be read on its own.

    Raises:
        InputError: if the checkpoint is missing, incomplete, or of a newer version of this package.
    """
    check(path)
    try:
        state = json.loads((path / "state.json").read_text())
        rest = state.pop("rest")
        stored = _stored if lazy else load_file
        return {name: _join(stored(path / f"{name}.safetensors"), rest[name]) for name in rest}, state
    except (SafetensorError, ValueError, KeyError, TypeError, OSError) as error:
        raise InputError(f"checkpoint {path}: cannot be read: {type(error).__name__}: {error}. Use an earlier one") from error


def check(path: Path) -> None:
    """Raises InputError, saying what is wrong, unless `path` is a complete checkpoint this version can read."""
    if not path.is_dir():
        raise InputError(f"checkpoint {path}: there is no such folder")
    if (path / "checkpoints").is_dir():
        raise InputError(f"checkpoint {path}: is a run's folder. Name one of {path / 'checkpoints'}, or leave out --output")
    manifest = path / "manifest.json"
    if not manifest.is_file():
        raise InputError(f"checkpoint {path}: has no manifest.json, so it was not written to its end. Use an earlier one")
    try:
        written = json.loads(manifest.read_text())
        version, files = int(written["format"]), dict(written["files"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"checkpoint {path}: its manifest.json cannot be read: {error}. Use an earlier one") from error
    if version > FORMAT:
        raise InputError(f"checkpoint {path}: has format {version}, this version reads up to {FORMAT}. Upgrade amd-plugin")
    if "state.json" not in files:
        raise InputError(f"checkpoint {path}: its manifest.json names no state.json. Use an earlier one")
    for name, size in files.items():
        actual = (path / name).stat().st_size if (path / name).is_file() else 0
        if actual != size:
            raise InputError(f"checkpoint {path}: {name} should have {size} bytes, got {actual}. Use an earlier one")


def available(folder: Path) -> list[Path]:
    """The complete checkpoints in `folder`, oldest first."""
    complete = []
    # By number: a name has more digits after a million steps.
    for path in sorted(folder.glob("step-*"), key=step_of) if folder.is_dir() else []:
        try:
            check(path)
            complete.append(path)
        except InputError as error:
            log.warning("%s", error)
    return complete


def step_of(path: Path) -> int:
    """The step in a name ``step-NNNNNN``, with or without a suffix; -1 for another name."""
    number = path.stem.removeprefix("step-")
    return int(number) if number.isdecimal() else -1


def find(folder: Path, at: str | None = None) -> Path:
    """The checkpoint in `folder` of step `at`, or in the folder `at`; by default the newest one.

    Raises:
        InputError: if there is none.
    """
    usable = available(folder)
    if at is None:
        if not usable:
            raise InputError(f"{folder}: holds no complete checkpoint")
        return usable[-1]
    path = folder / f"step-{int(at):06d}" if at.isdecimal() else Path(at)
    if at.isdecimal() and path not in usable:
        steps = ", ".join(str(step_of(path)) for path in usable) or "none"
        raise InputError(f"--checkpoint {at}: there is none of that step in {folder}. There are: {steps}")
    check(path)
    return path


def _stored(path: Path) -> dict[str, LazyTensor]:
    """The tensors in a file."""
    file = safe_open(path, "pt")
    parts = {key: file.get_slice(key) for key in file.keys()}
    return {key: LazyTensor(torch.Size(part.get_shape()), partial(file.get_tensor, key)) for key, part in parts.items()}


def _split(state: Any, prefix: str = "") -> tuple[dict[str, Tensor | LazyTensor], Any]:
    """Nested dicts and lists as (tensors by path, the rest with a placeholder for each tensor)."""
    if isinstance(state, (Tensor, LazyTensor)):
        return {prefix: state}, {"tensor": prefix}
    if isinstance(state, dict):
        parts = [(key, *_split(value, f"{prefix}.{key}")) for key, value in state.items()]
        # JSON has only text keys; an optimizer counts its parameters.
        return {k: v for _, flat, _ in parts for k, v in flat.items()}, {"dict": [[key, rest] for key, _, rest in parts]}
    if isinstance(state, (list, tuple)):
        split = [_split(value, f"{prefix}.{index}") for index, value in enumerate(state)]
        return {k: v for flat, _ in split for k, v in flat.items()}, {"list": [rest for _, rest in split]}
    return {}, {"plain": state}


def _join(flat: Mapping[str, Tensor | LazyTensor], rest: Any) -> Any:
    kind, value = next(iter(rest.items()))
    if kind == "tensor":
        return flat[value]
    if kind == "dict":
        return {key: _join(flat, inner) for key, inner in value}
    if kind == "list":
        return [_join(flat, inner) for inner in value]
    return value


def write_json(path: Path, content: Any) -> None:
    """Writes `content`."""
    path.write_text(json.dumps(content))


def tensors_on(state: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """`state` with its tensors on `device`: optimizers keep their state on the device it is loaded from."""
    flat, rest = _split(state)
    return _join({key: materialize(value).to(device) for key, value in flat.items()}, rest)  # type: ignore[no-any-return]
