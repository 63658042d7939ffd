"""What a call costs, by making it: live bytes and floating-point operations of a forward and a backward pass on fake tensors.

Nothing is estimated by formula. The same operations run as in training, on tensors without memory, and every storage is counted
from its birth to its last reference. On the CPU the result is that of torch's own allocator, which the tests hold it to.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

# torch's own formulas by operation, and the CPU's fused attention, which they lack. `FlopCounterMode` itself would do, but it
# keeps tensors alive that training lets go.
_FLOPS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *rest, **more: sdpa_flop_count(
        q.shape, k.shape, v.shape
    ),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda gradient, q, k, v, *rest, **more: (
        sdpa_backward_flop_count(gradient.shape, q.shape, k.shape, v.shape)
    ),
}


class Trace(NamedTuple):
    """One call of a network.

    Attributes:
        held: bytes that the graph keeps from the forward to the backward pass; 0 without gradient.
        forward: most bytes alive during the forward pass, those held included.
        backward: most bytes alive during the backward pass, beside gradients of parameters, which exist already.
        flops_forward, flops_backward: floating-point operations.
    """

    held: int
    forward: int
    backward: int
    flops_forward: int
    flops_backward: int

    @property
    def peak(self) -> int:
        """Most bytes alive at any time."""
        return max(self.forward, self.backward)


class Counter(TorchDispatchMode):
    """Counts floating-point operations, and the storages that operations make and that are still referenced.

    Args:
        known: tensors that exist before; what shares their storages is no new memory.
    """

    def __init__(self, known: Iterable[Tensor]):
        super().__init__()
        self.now = self.peak = self.flops = 0
        self._storages = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = function(*args, **(kwargs or {}))
        if (count := _FLOPS.get(function._overloadpacket)) is not None:
            self.flops += count(*args, **(kwargs or {}), out_val=output)
        for value in tree_leaves(output):
            if isinstance(value, Tensor):
                self._add(value.untyped_storage())
        return output

    def _add(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._storages:
            self._storages.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._drop, key, size).atexit = False

    def _drop(self, key: int, size: int) -> None:
        self._storages.discard(key)
        self.now -= size


def trace(call: Callable[[], Tensor], known: Iterable[Tensor], *, grad: bool) -> Trace:
    """The costs of ``call()`` and, with `grad`, of the backward pass from its output.

    Args:
        call: makes the output; in fake mode if it is to cost nothing.
        known: parameters, their gradients, buffers and inputs.
    """
    live = Counter(known)
    with live, torch.set_grad_enabled(grad):
        output = call()
        # The loss and its gradient are made of fp32 samples.
        target = output.float()
        forward, held, counted = live.peak, live.now if grad else 0, live.flops
        if grad:
            live.peak = live.now
            target.backward(torch.empty_like(target))
    return Trace(held, forward, live.peak if grad else 0, counted, live.flops - counted)


def along(measure: Callable[[int], dict[str, Trace]], count: int) -> dict[str, Trace]:
    """Traces of what has `count` equal parts, blocks or frames: read off a line through three small ones where they lie on one.

    Args:
        measure: traces by name, of so many parts.
    """
    small = range(3, 6)
    if count <= small[-1] + 1:
        return measure(count)
    first, second, third = (measure(parts) for parts in small)
    found = {}
    for name in first:
        values = []
        for a, b, c in zip(first[name], second[name], third[name], strict=True):
            if c - b != b - a:
                return measure(count)
            values.append(c + (count - small[-1]) * (c - b))
        found[name] = Trace(*values)
    return found
