"""The cost of a call, measured by running it: live bytes and operations of a forward and a backward pass on fake tensors.

Nothing is estimated by formula. The same operations run as in training, on tensors without memory, and every storage is counted
from its creation to its last reference. On the CPU the result equals that of torch's own allocator, as the tests check.
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

# torch's own formulas by operation, plus the CPU's fused attention, which they lack. `FlopCounterMode` itself is not used: it
# keeps tensors alive that training frees.
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
    """The costs of one call of a network.

    Attributes:
        held: bytes that the graph keeps from the forward to the backward pass; 0 without gradient.
        forward: most bytes alive during the forward pass, including those held.
        backward: most bytes alive during the backward pass, without the parameters' gradients, which exist already.
        flops_forward: floating-point operations of the forward pass.
        flops_backward: floating-point operations of the backward pass.
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
    """Counts floating-point operations, and the bytes of new storages that are still referenced.

    Args:
        existing: tensors that exist before; a tensor that shares their storage is no new memory.

    Attributes:
        now: bytes alive.
        peak: most bytes alive so far.
        flops: floating-point operations so far.
    """

    def __init__(self, existing: Iterable[Tensor]):
        super().__init__()  # type: ignore[no-untyped-call]  # torch annotates no constructor here
        self.now = self.peak = self.flops = 0
        self._storages = {tensor.untyped_storage()._cdata for tensor in existing}

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


def trace(call: Callable[[], Tensor], existing: Iterable[Tensor], *, grad: bool) -> Trace:
    """The costs of ``call()`` and, with `grad`, of the backward pass from its output.

    Args:
        call: function that computes the output; it allocates nothing in fake mode.
        existing: parameters, their gradients, buffers and inputs.
        grad: whether the backward pass runs too.
    """
    live = Counter(existing)
    with live, torch.set_grad_enabled(grad):
        output = call()
        # The loss is computed from fp32 samples.
        target = output.float()
        forward, held, counted = live.peak, live.now if grad else 0, live.flops
        if grad:
            live.peak = live.now
            torch.autograd.backward(target, torch.empty_like(target))
    return Trace(held, forward, live.peak if grad else 0, counted, live.flops - counted)


def along(measure: Callable[[int], dict[str, Trace]], count: int) -> dict[str, Trace]:
    """Traces for `count` equal parts, blocks or frames, extrapolated from three small numbers of parts where costs are linear.

    Args:
        measure: function from a number of parts to traces by name.
        count: number of parts.
    """
    small = range(3, 6)
    if count <= small[-1] + 1:
        return measure(count)
    first, second, third = (measure(parts) for parts in small)
    extrapolated = {}
    for name in first:
        values = []
        for a, b, c in zip(first[name], second[name], third[name], strict=True):
            if c - b != b - a:
                return measure(count)
            values.append(c + (count - small[-1]) * (c - b))
        extrapolated[name] = Trace(*values)
    return extrapolated
