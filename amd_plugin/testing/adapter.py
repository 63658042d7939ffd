"""The interface that an adapter's author implements for the conformance tests: tiny runs of the host, stock or with AMD."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class Trace(NamedTuple):
    """The results of a run of the host.

    Attributes:
        losses: loss of every turn in order, as 0-dim tensors.
        weights: trained parameters of student and fake score, in a fixed order.
        random_state: state of the host's random generator, as bytes in a tensor.
    """

    losses: list[Tensor]
    weights: list[Tensor]
    random_state: Tensor


class Run(Protocol):
    """A tiny training run on a CPU, from fixed seeds. Each batch holds two or more prompts, each at least twice."""

    def train(self, steps: int) -> Trace:
        """Continues for `steps` updates, and returns the trace of these."""
        ...

    def state(self) -> Any:
        """Everything a checkpoint of the host holds, with AMD's state as JSON-able values."""
        ...

    def restore(self, state: Any) -> None:
        """Loads the `state` of another run."""
        ...


class Adapter(Protocol):
    """A factory of runs; its class is called without arguments."""

    def stock(self) -> Run:
        """The host without AMD."""
        ...

    def amd(self, options: Mapping[str, Any], reward: Callable[..., Any] | None, order: Sequence[int] | None = None) -> Run:
        """The host with AMD.

        Args:
            options: options of `AMDObjective`.
            reward: reward, called with (media [B, ...], prompts).
            order: order of the rows in each batch, in which the run also trains inside `ReorderedDraws(order)`. For an adapter
                without this argument the test of the order is skipped.
        """
        ...


class ReorderedDraws(TorchFunctionMode):
    """A context in which torch's random numbers for a batch of ``len(order)`` rows come in another order, in this thread.

    Args:
        order: old index of each row, e.g. ``[2, 0, 3, 1]``.
    """

    DRAWS = (torch.randn, torch.rand, torch.randint, torch.randn_like, torch.rand_like, torch.randint_like)

    def __init__(self, order: Sequence[int]):
        super().__init__()
        self._order = list(order)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called for every function of torch."""
        drawn = func(*args, **(kwargs or {}))
        return drawn[self._order] if func in self.DRAWS and drawn.shape[:1] == (len(self._order),) else drawn
