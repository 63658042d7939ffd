"""Checkpoints without pickle: safetensors and JSON, complete or not there at all.

A checkpoint is a folder ``step-NNNNNN`` that is written under another name and renamed once its manifest, written last,
lists every file with its size and checksum. Random numbers have no state to save: seed and step determine them
(`amd_plugin.randomness`). What is read back is input like any other: it is checked, and ends in one kind of error.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from amd_plugin.atomic import remove_folder, replaced_folder
from amd_plugin.checksums import changed, checksums
from amd_plugin.errors import InputError, unreadable_is_input_error
from amd_plugin.host.checkpoint import streamed
from amd_plugin.json_files import Step, read
from amd_plugin.models.lazy_weights import LazyTensor, materialize

log = logging.getLogger(__name__)

FORMAT = 2
ADVICE = "Use an earlier one"
PARTIAL, SET_ASIDE = "-partial", "set-aside"
LONGEST = 255  # bytes in a name


class Manifest(BaseModel):
    """The content of manifest.json.

    Attributes:
        format: version of the layout of a checkpoint.
        files: file -> its size in bytes.
        checksums: file -> its checksum; empty in format 1, which had none.
    """

    format: int
    files: dict[str, int]
    checksums: dict[str, str] = {}


class State(BaseModel):
    """The content of state.json; further keys are those that were given to `save`.

    Attributes:
        step: number of student updates.
        rest: file stem -> what is no tensor in it, see `_split`.
    """

    model_config = ConfigDict(extra="allow")

    step: Step
    rest: dict[str, dict[str, Any]]


def save(
    folder: Path, step: int, tensors: dict[str, dict[str, Any]], state: dict[str, Any], keep: int, *, writes: bool = True,
    about: Mapping[str, str] | None = None, partial: bool = False, finite: bool = True,
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
        partial: whether the state holds a part of the next step's updates: it goes to ``step-NNNNNN-partial``, which stands
            beside the checkpoints and removes none of them.
        finite: whether tensors must be finite, as those of a state to go on from.

    Returns:
        The checkpoint's folder.

    Raises:
        OSError: where it cannot be written, after all tensors have been gathered.
        NotFinite: where a tensor holds NaN or an infinity: nobody could go on from it.
    """
    path = folder / name_of(step, partial=partial)
    failure: Exception | None = None
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
                here = writes and failure is None
                streamed.write(draft / f"{name}.safetensors", flat, writes=here, about=header, finite=finite)
            except (OSError, streamed.NotFinite) as error:
                failure = error
        if failure is not None:
            raise failure
        if not writes:
            return path
        write_json(draft / "state.json", {"step": step, "rest": rest, **state})
        write_manifest(draft)
    if not partial:
        prune(folder, step, keep)
    return path


def prune(folder: Path, step: int, keep: int) -> None:
    """Removes all but the last `keep` checkpoints, and parts of steps before `step`."""
    for old in (*available(folder)[:-keep], *partials(folder, before=step)):
        remove_folder(old)


def name_of(step: int, *, partial: bool = False) -> str:
    """The name of a checkpoint's folder."""
    return f"step-{step:06d}{PARTIAL if partial else ''}"


def partials(folder: Path, before: float = float("inf")) -> list[Path]:
    """What was rescued in `folder` in the middle of a step, before the step `before`, oldest first."""
    found = {path: step_of(path.with_name(path.name.removesuffix(PARTIAL))) for path in folder.glob(f"step-*{PARTIAL}")}
    return sorted((path for path, step in found.items() if step < before), key=found.__getitem__)


def set_aside(folder: Path, after: int) -> list[Path]:
    """Moves the checkpoints in `folder` of steps beyond `after` to ``folder/set-aside``; returns where they are now.

    A run that goes on from an earlier one writes these steps anew. Until then the others would count as its newest.
    """
    moved = list[Path]()
    for path in sorted(folder.glob("step-*")):
        if step_of(path) <= after:  # as that of a partial one is, which a later checkpoint removes
            continue
        place, others = folder / SET_ASIDE / path.name, 0
        while place.exists():
            place = place.with_name(f"{path.name}.{(others := others + 1)}")
        place.parent.mkdir(exist_ok=True)
        moved.append(path.rename(place))
    return moved


def load(
    path: Path, *, lazy: bool = False, kind: type[State] = State, needed: Iterable[str] = ()
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """(tensors, state) as they were given to `save`.

    Args:
        lazy: whether tensors are returned as `LazyTensor`, each to be read on its own.
        kind: what state.json must hold.
        needed: file stems that must be among the tensors.

    Raises:
        InputError: if the checkpoint is missing, incomplete, damaged, without a part that is needed, or of a newer version of
            this package.
    """
    # Processes that each read a share would each read everything for that; the first of them has, in `verify`.
    (check if lazy else verify)(path)
    stored = _stored if lazy else load_file
    with unreadable_is_input_error(f"checkpoint {path}: cannot be read", f" {ADVICE}"):
        state = _read(path, "state.json", kind).model_dump()
        rest = state.pop("rest")
        if missing := sorted(set(needed) - rest.keys()):
            raise InputError(f"checkpoint {path}: holds no {', '.join(missing)}. {ADVICE}")
        return {name: _join(stored(path / f"{name}.safetensors"), rest[name]) for name in rest}, state


def read_state(path: Path, kind: type[State] = State) -> dict[str, Any]:
    """The state of a checkpoint, without its tensors; raises InputError where it cannot be read, or is not of `kind`."""
    check(path)
    state: dict[str, Any] = _read(path, "state.json", kind).model_dump()
    return state


def check(path: Path) -> Manifest:
    """The manifest of a complete checkpoint that this version can read; of its files only the sizes are looked at.

    Raises:
        InputError: saying what is wrong.
    """
    if not path.is_dir():
        raise InputError(f"checkpoint {path}: there is no such folder")
    if (path / "checkpoints").is_dir():
        raise InputError(f"checkpoint {path}: is a run's folder. Name one of the folders in {path / 'checkpoints'}")
    if not (path / "manifest.json").is_file():
        if not path.absolute().name.startswith("step-"):
            advice = "Name a folder in the checkpoints of a run, such as RUN/checkpoints/step-000400"
            raise InputError(f"{path}: is no checkpoint (no manifest.json). {advice}")
        raise InputError(f"checkpoint {path}: has no manifest.json, so it was not written to its end. {ADVICE}")
    manifest: Manifest = _read(path, "manifest.json", Manifest)
    if manifest.format > FORMAT:
        raise InputError(
            f"checkpoint {path}: has format {manifest.format}, this version reads up to {FORMAT}. Upgrade amd-plugin"
        )
    if "state.json" not in manifest.files:
        raise InputError(f"checkpoint {path}: its manifest.json names no state.json. {ADVICE}")
    for name, size in manifest.files.items():
        if Path(name).name != name or "\0" in name or len(name.encode()) > LONGEST:
            message = f"must be names in this folder, got {name[:60]!r}"
            raise InputError(f"checkpoint {path}: manifest.json: files: {message}. {ADVICE}")
        actual = (path / name).stat().st_size if (path / name).is_file() else 0
        if actual != size:
            raise InputError(f"checkpoint {path}: {name} should have {size} bytes, got {actual}. {ADVICE}")
        if manifest.format > 1 and name not in manifest.checksums:
            raise InputError(f"checkpoint {path}: manifest.json: checksums: there is none of {name}. {ADVICE}")
    return manifest


def verify(path: Path) -> None:
    """Reads every file of a checkpoint; raises InputError, saying what is wrong, unless all are as they were written."""
    manifest = check(path)
    digests = manifest.checksums
    if problem := changed(path, {name: (size, digests[name]) for name, size in manifest.files.items() if name in digests}):
        raise InputError(f"checkpoint {path}: is damaged: {problem}. {ADVICE}")


def newest(folder: Path) -> Path | None:
    """The newest checkpoint in `folder` that `verify` accepts, with a warning for each newer one; None where there is none."""
    for path in reversed(available(folder)):
        try:
            verify(path)
            return path
        except InputError as error:
            log.warning("%s; it is left out", str(error).removesuffix(f". {ADVICE}"))
    return None


def available(folder: Path) -> list[Path]:
    """The complete checkpoints in `folder`, oldest first."""
    complete = []
    # By number: a name has more digits after a million steps.
    whole = [path for path in folder.glob("step-*") if not path.name.endswith(PARTIAL)] if folder.is_dir() else []
    for path in sorted(whole, key=step_of):
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
    """The checkpoint in `folder` of step `at`, or in the folder `at`; by default the newest one. It was read to its end.

    Raises:
        InputError: if there is none, or the one asked for is damaged.
    """
    if at is None:
        if (path := newest(folder)) is None:
            raise InputError(f"{folder}: holds no complete checkpoint")
        return path
    usable = available(folder)
    path = next((path for path in usable if str(step_of(path)) == (at.lstrip("0") or "0")), Path(at))
    if at.isdecimal() and path not in usable:
        steps = ", ".join(str(step_of(path)) for path in usable) or "none"
        raise InputError(f"--checkpoint {at}: there is none of that step in {folder}. There are: {steps}")
    verify(path)
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
    """What `_split` took apart; raises KeyError, TypeError or ValueError where `rest` is nothing that it makes."""
    match rest:
        case {"tensor": name}:
            return flat[name]
        case {"dict": list(pairs)}:
            return {key: _join(flat, inner) for key, inner in pairs}
        case {"list": list(parts)}:
            return [_join(flat, inner) for inner in parts]
        case {"plain": value}:
            return value
    raise ValueError(f"state.json: rest: no part of a state: {str(rest)[:60]}")


def _read(path: Path, name: str, kind: type[BaseModel]) -> Any:
    return read(path / name, kind, ADVICE, f"checkpoint {path}")


def write_manifest(path: Path) -> None:
    """Writes the manifest of all other files in `path`."""
    written = {name: of_file for name, of_file in checksums(path).items() if name != "manifest.json"}
    sizes, digests = ({name: of_file[part] for name, of_file in written.items()} for part in (0, 1))
    write_json(path / "manifest.json", {"format": FORMAT, "files": sizes, "checksums": digests})


def write_json(path: Path, content: Any) -> None:
    """Writes `content`."""
    path.write_text(json.dumps(content), encoding="utf-8")


def tensors_on(state: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """`state` with its tensors on `device`: optimizers keep their state on the device it is loaded from."""
    flat, rest = _split(state)
    return _join({key: materialize(value).to(device) for key, value in flat.items()}, rest)  # type: ignore[no-any-return]
