"""An unfinished teacher on disk, from which its training goes on to the bit."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from amd_plugin.atomic import replaced_file
from amd_plugin.disk import dispensable, regular
from amd_plugin.errors import in_words
from amd_plugin.models.conditions import CHECKSUM, checksum_of

log = logging.getLogger(__name__)


def save(file: Path, step: int, trained: nn.Module, average: nn.Module | None, optimizer: Any, draws: torch.Generator) -> None:
    """Writes everything that the updates after the first `step` depend on."""
    tensors: dict[str, Tensor] = {"step": torch.tensor(step), "draws": draws.get_state()}
    tensors |= {f"trained.{name}": value for name, value in trained.state_dict().items()}
    if average is not None:
        tensors |= {f"average.{name}": value for name, value in average.state_dict().items()}
    for index, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in values.items()}
    with dispensable(file, "training goes on; if it is interrupted, it begins again"), replaced_file(file) as draft:
        written = {name: value.contiguous().clone() for name, value in tensors.items()}
        save_file(written, draft, {CHECKSUM: checksum_of(written)})


def load(
    file: Path, latest: int, trained: nn.Module, average: nn.Module | None, optimizer: Any, draws: torch.Generator
) -> int:  # fmt: skip
    """Loads what `save` wrote, if it is of no later update than `latest`; the number of updates done, 0 without such a file.

    Where it cannot be loaded a warning says so, and all is as it was.
    """
    tensors = _read(file)
    if not tensors or int(tensors["step"]) > latest:
        return 0
    parts = {"trained": trained, "optimizer": optimizer} | ({} if average is None else {"average": average})
    before, drawn = copy.deepcopy({name: part.state_dict() for name, part in parts.items()}), draws.get_state()
    try:
        trained.load_state_dict(_part(tensors, "trained."))
        if average is not None:
            average.load_state_dict(_part(tensors, "average."))
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in _part(tensors, "optimizer.").items():
            index, _, key = name.partition(".")
            state.setdefault(int(index), {})[key] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        draws.set_state(tensors["draws"])
    except Exception as error:  # written by another version of the networks
        for name, part in parts.items():
            part.load_state_dict(before[name])
        draws.set_state(drawn)
        _begins_again(file, in_words(error))
        return 0
    return int(tensors["step"])


def _read(file: Path) -> dict[str, Tensor]:
    """The tensors that `save` wrote; none where there is no file, or one that has changed since, with a warning."""
    if not file.exists():
        return {}
    try:
        with safe_open(regular(file), "pt") as opened:
            expected = (opened.metadata() or {}).get(CHECKSUM)
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        _begins_again(file, in_words(error))
        return {}
    if expected == checksum_of(tensors):
        return tensors
    _begins_again(file, "the bytes are not those that were written")
    return {}


def _begins_again(file: Path, problem: str) -> None:
    log.warning("%s: cannot be loaded: %s; the teacher's training begins again", file, problem)


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
