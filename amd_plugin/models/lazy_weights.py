"""A network's weights read from files one tensor at a time, for networks that no process holds whole while they load."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from amd_plugin.errors import InputError
from amd_plugin.models.dtypes import cast_weights

TensorReader = Callable[[str], Tensor]

STEM = "diffusion_pytorch_model"


class LazyTensor(NamedTuple):
    """A tensor that is read on access: from a file, or gathered from all processes.

    Attributes:
        shape: the tensor's shape.
        read: the function that returns the tensor.
    """

    shape: torch.Size
    read: Callable[[], Tensor]


def materialize(value: Tensor | LazyTensor) -> Tensor:
    """The tensor itself; reads a lazy one."""
    return value.read() if isinstance(value, LazyTensor) else value


class Weights:
    """A reader of the tensors of a diffusers model by name.

    Args:
        folder: the folder with the model's ``config.json``.
        variant: the variant of the weight files, for example ``fp16``.
        key: the recipe's key that names the model, for messages.

    Raises:
        InputError: for a folder without safetensors of that variant, or with files that cannot be read.
    """

    def __init__(self, folder: Path, variant: str | None = None, key: str = "model.path"):
        self._folder, self._key = folder, key
        middle = f".{variant}" if variant else ""
        index, single = folder / f"{STEM}.safetensors.index{middle}.json", folder / f"{STEM}{middle}.safetensors"
        if index.is_file():
            self._files: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        elif single.is_file():
            self._files = {"": single.name}
            with self._open("") as file:
                self._files = dict.fromkeys(file.keys(), single.name)
        else:
            raise InputError(f"{key}: {folder} has neither {index.name} nor {single.name}")

    def __call__(self, name: str) -> Tensor:
        """The tensor `name`, on the CPU, in the file's dtype."""
        with self._open(name) as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor

    def check(self, network: nn.Module) -> None:
        """Checks that the files have every parameter and persistent buffer of `network` in its shape.

        Raises:
            InputError: for a tensor that is missing or has another shape.
        """
        for name, value in network.state_dict().items():
            shape = None
            if name in self._files:
                with self._open(name) as file:
                    shape = tuple(file.get_slice(name).get_shape())
            if shape != tuple(value.shape):
                raise InputError(
                    f"{self._key}: {self._folder}: needs {name} of shape {tuple(value.shape)}, found {shape or 'none'}. Save "
                    "it again with this version of diffusers, or set distributed.teacher to none"
                )

    def _open(self, name: str) -> Any:
        path = self._folder / self._files[name]
        try:
            return safe_open(path, "pt")
        except (OSError, SafetensorError) as error:
            raise InputError(f"{self._key}: {path}: cannot be read: {error}") from error


def meta_network(build: Callable[[], nn.Module], dtype: torch.dtype, read: TensorReader) -> nn.Module:
    """A network with parameters on the meta device, in the dtypes of `from_pretrained`, and with real buffers.

    Args:
        build: the network's constructor.
        dtype: the dtype of parameters, except of those that the network's class keeps in fp32.
        read: the reader of persistent buffers by name.
    """
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        network = build()
    cast_weights(network, dtype)
    persistent = network.state_dict().keys()
    for name, buffer in network.named_buffers():
        if name in persistent:
            owner, _, key = name.rpartition(".")
            value = read(name)
            network.get_submodule(owner)._buffers[key] = value.to(dtype if buffer.is_floating_point() else buffer.dtype)
    return network.requires_grad_(False).eval()


def materialize_meta(network: nn.Module, read: TensorReader) -> nn.Module:
    """`network`, changed in place: all its parameters on the meta device are read."""
    for prefix, part in network.named_modules():
        for key, parameter in part._parameters.items():
            if parameter is not None and parameter.is_meta:
                data = read(f"{prefix}.{key}" if prefix else key).to(parameter.dtype)
                part._parameters[key] = nn.Parameter(data, requires_grad=parameter.requires_grad)
    return network
