"""What one turn of ModelOpt's pipeline leaves behind: arguments, predictions and advantages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from amd_plugin.adapters.modelopt_rollout import Given


@dataclass
class Turn:
    """The running turn.

    Attributes:
        role: ``student`` or ``fake_score``.
        given: arguments of the turn; samples are grouped by their text embeddings.
        predictions: network, predicted x0 and timesteps of every prediction so far.
        advantage: advantages of the student's samples; None before they are scored.
        scored_before: whether they are those of an earlier turn.
        fake_call: arguments of the last prediction of the fake score.
        harvested: sample that answers the student's next call; None before a harvest, and after that call.
    """

    role: str
    given: Given
    predictions: list[tuple[nn.Module, Tensor, Tensor]]
    advantage: Tensor | None = None
    scored_before: bool = False
    fake_call: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})
    harvested: Tensor | None = None
