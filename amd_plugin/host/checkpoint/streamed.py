"""A safetensors file written one tensor after the other, for state that no process may hold as a whole.

The format: eight bytes of length, a JSON header with type, shape and offsets of every tensor, the tensors' bytes in that order.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from amd_plugin.models.lazy_weights import LazyTensor, materialize

TYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


class NotFinite(ValueError):
    """A tensor that is to be kept holds NaN or an infinity."""


def write(
    path: Path, tensors: Mapping[str, Tensor | LazyTensor], *, writes: bool = True, about: Mapping[str, str] | None = None,
    finite: bool = True,
) -> None:  # fmt: skip
    """Writes `tensors` to `path`. Each `LazyTensor` is read when its turn comes, as fp32, whatever happens to the file.

    Args:
        path: the file.
        tensors: name -> tensor.
        about: words about the file for its header, where safetensors' tools show them.
        finite: whether a tensor must be finite.
        writes: whether this process writes. False only reads each `LazyTensor`, in which all processes take part.

    Raises:
        OSError: for a file that cannot be written, after all tensors have been read.
        NotFinite: for a tensor that holds NaN or an infinity, likewise.
    """
    file: Any = None
    failure: Exception | None = None
    try:
        if writes:
            file = path.open("wb")
            file.write(_header(tensors, about or {}))
    except OSError as error:
        failure = error
    for name, value in tensors.items():
        if not (writes or isinstance(value, LazyTensor)):
            continue
        whole = materialize(value)
        try:
            if writes and failure is None:
                if finite and not torch.isfinite(whole).all():
                    raise NotFinite(f"{path.stem}: {name.lstrip('.')} holds NaN or an infinity")
                file.write(whole.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        except (OSError, NotFinite) as error:
            failure = error
    if file is not None:
        file.close()
    if failure is not None:
        raise failure


def _header(tensors: Mapping[str, Tensor | LazyTensor], about: Mapping[str, str]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": dict(about)} if about else {}
    end = 0
    for name, value in tensors.items():
        dtype = torch.float32 if isinstance(value, LazyTensor) else value.dtype
        begin, end = end, end + value.shape.numel() * dtype.itemsize
        entries[name] = {"dtype": TYPES[dtype], "shape": list(value.shape), "data_offsets": [begin, end]}
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)  # aligns the tensors
    return struct.pack("<Q", len(text)) + text
