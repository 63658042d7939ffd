"""A network's weights in their files, one tensor at a time, for networks that no process is to hold whole while they load."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from amd_plugin.errors import InputError

TensorReader = Callable[[str], Tensor]

STEM = "diffusion_pytorch_model"


class LazyTensor(NamedTuple):
    """A tensor that is made when it is read: from a file, or from what all processes keep of it."""

    shape: torch.Size
    read: Callable[[], Tensor]


def materialize(value: Tensor | LazyTensor) -> Tensor:
    """The tensor itself."""
    return value.read() if isinstance(value, LazyTensor) else value


class Weights:
    """The tensors of a diffusers model by name; calling it reads one.

    Args:
        folder: with the model's ``config.json``.
        variant: of the weight files, e.g. ``fp16``.
        key: the recipe's key that named it, for messages.

    Raises:
        InputError: where there are no safetensors of that variant.
    """

    def __init__(self, folder: Path, variant: str | None = None, key: str = "model.path"):
        self._folder, self._key = folder, key
        middle = f".{variant}" if variant else ""
        index, single = folder / f"{STEM}.safetensors.index{middle}.json", folder / f"{STEM}{middle}.safetensors"
        if index.is_file():
            self._files: dict[str, str] = json.loads(index.read_text())["weight_map"]
        elif single.is_file():
            self._files = {"": single.name}
            with self._open("") as file:
                self._files = dict.fromkeys(file.keys(), single.name)
        else:
            raise InputError(f"{key}: {folder} has neither {index.name} nor {single.name}")

    def __call__(self, name: str) -> Tensor:
        """The tensor `name`, on the CPU."""
        with self._open(name) as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor

    def check(self, network: nn.Module) -> None:
        """Raises InputError unless every parameter and persistent buffer of `network` is there, in its shape."""
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
    """A network whose parameters are on the meta device, in the dtypes `from_pretrained` would give them; buffers are real.

    Args:
        build: makes it.
        dtype: of its parameters, those aside that its class keeps in fp32.
        read: a tensor's name -> its value; for persistent buffers.
    """
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        network = build()
    kept = getattr(network, "_keep_in_fp32_modules", None) or ()
    for name, parameter in network.named_parameters():
        whole = any(part in kept for part in name.split("."))
        parameter.data = parameter.data.to(torch.float32 if whole else dtype)
    persistent = network.state_dict().keys()
    for name, buffer in network.named_buffers():
        if name in persistent:
            owner, _, key = name.rpartition(".")
            value = read(name)
            network.get_submodule(owner)._buffers[key] = value.to(dtype if buffer.is_floating_point() else buffer.dtype)
    return network.requires_grad_(False).eval()


def materialize_meta(network: nn.Module, read: TensorReader) -> nn.Module:
    """`network` with all parameters read that are on the meta device."""
    for prefix, part in network.named_modules():
        for key, parameter in part._parameters.items():
            if parameter is not None and parameter.is_meta:
                data = read(f"{prefix}.{key}" if prefix else key).to(parameter.dtype)
                part._parameters[key] = nn.Parameter(data, requires_grad=parameter.requires_grad)
    return network
