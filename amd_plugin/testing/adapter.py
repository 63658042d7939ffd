"""What the author of an adapter writes for the conformance tests: a tiny run of the host, stock or with AMD."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

from torch import Tensor


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

    def amd(self, options: Mapping[str, Any], reward: Callable[..., Any] | None) -> Run:
        """The same with AMD: `options` of `AMDObjective`, and a reward called with (media [B, ...], prompts)."""
        ...
