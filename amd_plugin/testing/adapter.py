"""What the author of an adapter writes for the conformance tests: a tiny run of the host, stock or with AMD."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class Trace(NamedTuple):
    """What a run of the host left behind.

    Attributes:
        losses: 0-dim tensors, of every turn in order.
        weights: the trained parameters of student and fake score, in a fixed order.
        random_state: of the generator the host draws from, as bytes in a tensor.
    """

    losses: list[Tensor]
    weights: list[Tensor]
    random_state: Tensor


class Run(Protocol):
    """A tiny training run on a CPU, from fixed seeds. Each batch holds at least two prompts, each of them twice or more."""

    def train(self, steps: int) -> Trace:
        """Goes on for `steps` updates; what was trained before stays. The trace is of these steps."""
        ...

    def state(self) -> Any:
        """All that a checkpoint of the host holds, AMD's part as JSON-able values."""
        ...

    def restore(self, state: Any) -> None:
        """Takes the `state` of another run."""
        ...


class Adapter(Protocol):
    """Makes runs. It is called without arguments."""

    def stock(self) -> Run:
        """The host without AMD."""
        ...

    def amd(self, options: Mapping[str, Any], reward: Callable[..., Any] | None, order: Sequence[int] | None = None) -> Run:
        """The same with AMD.

        Args:
            options: of `AMDObjective`.
            reward: called with (media [B, ...], prompts).
            order: takes the rows of each batch in this order, and trains inside `ReorderedDraws(order)`; an adapter without
                this argument is not asked whether the order matters.
        """
        ...


class ReorderedDraws(TorchFunctionMode):
    """Inside it, torch's random numbers for a batch of as many rows come in another order; of this thread, as all modes are.

    Args:
        order: which row comes where, e.g. ``[2, 0, 3, 1]``.
    """

    DRAWS = (torch.randn, torch.rand, torch.randint, torch.randn_like, torch.rand_like, torch.randint_like)

    def __init__(self, order: Sequence[int]):
        super().__init__()
        self._order = list(order)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called for every function of torch."""
        drawn = func(*args, **(kwargs or {}))
        return drawn[self._order] if func in self.DRAWS and drawn.shape[:1] == (len(self._order),) else drawn
