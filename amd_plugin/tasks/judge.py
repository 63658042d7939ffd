"""The judgement of single samples by a network or a density that no training has used."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor


class Judge(NamedTuple):
    """A held-out judge.

    Attributes:
        name: description for people.
        features: media [B, ...] on the CPU -> features [B, D], for distances between sets of samples.
        fits: (media [B, ...] on the CPU, labels [B]) -> [B] of 0 and 1, whether each sample fits its label.
    """

    name: str
    features: Callable[[Tensor], Tensor]
    fits: Callable[[Tensor, Tensor], Tensor]
