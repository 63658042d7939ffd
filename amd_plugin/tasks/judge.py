"""What an embedded task can say of each single sample, by a network or a density that nothing was trained on."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor


class Judge(NamedTuple):
    """A held-out judge.

    Attributes:
        name: what it is, for people.
        features: media [B, ...] on the CPU -> [B, D], to compare sets of samples in.
        fits: (media, labels [B]) -> whether each sample is what was asked for, [B] of 0 and 1.
    """

    name: str
    features: Callable[[Tensor], Tensor]
    fits: Callable[[Tensor, Tensor], Tensor]
