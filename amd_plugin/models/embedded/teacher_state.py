"""An unfinished teacher on disk, from which its training goes on to the bit."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from amd_plugin.atomic import replaced_file
from amd_plugin.disk import dispensable

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
        save_file({name: value.contiguous().clone() for name, value in tensors.items()}, draft)


def load(
    file: Path, latest: int, trained: nn.Module, average: nn.Module | None, optimizer: Any, draws: torch.Generator
) -> int:  # fmt: skip
    """Loads what `save` wrote, if it is of no later update than `latest`; the number of updates done, 0 without such a file."""
    tensors = _read(file)
    if not tensors or int(tensors["step"]) > latest:
        return 0
    trained.load_state_dict(_part(tensors, "trained."))
    if average is not None:
        average.load_state_dict(_part(tensors, "average."))
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in _part(tensors, "optimizer.").items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    draws.set_state(tensors["draws"])
    return int(tensors["step"])


def _read(file: Path) -> dict[str, Tensor]:
    """The tensors that `save` wrote; none where there is no file, or one that cannot be read, with a warning."""
    try:
        return load_file(file) if file.is_file() else {}
    except (OSError, SafetensorError) as error:
        log.warning("%s: cannot be read: %s; the teacher's training begins again", file, error)
        return {}


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
