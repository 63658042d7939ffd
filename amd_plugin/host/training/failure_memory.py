"""A memory of failures: student samples that did worst, shown to the fake score again after the student has left them.

With a share rho of the fake score's samples drawn from failures n, DMD's fixed point is ``q* ~ (p - rho n)_+ / w``: the fake
score keeps its repulsion around places the student visits no longer, so that it does not return. Every process holds the same.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from amd_plugin.host.training.batch import Batch
from amd_plugin.models.lazy_weights import materialize

WORST = 8  # an eighth of each batch
SIZE = 384  # samples kept per rung


class FailureMemory:
    """The latest of the worst samples, by the exit rung they come from.

    Args:
        share: of a batch that is replaced by remembered samples.
    """

    def __init__(self, share: float):
        self._share = share
        self._kept: dict[str, dict[str, Tensor]] = {}

    def recall(self, batch: Batch, rows: slice, x0: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Samples [b, ...] and labels [b] of `rows` of `batch`, some replaced by remembered ones, and which; [b] bool.

        Which and by what is drawn for the joined batch, from the batch's own generators.
        """
        kept = self._kept.get(str(batch.exit_rung))
        replaced = (batch.uniform("memory", (0.0, 1.0)) < self._share)[rows]
        if kept is None or not len(kept["labels"]):
            return x0, labels, torch.zeros_like(replaced)
        count = len(kept["labels"])
        chosen = (batch.uniform("remembered", (0.0, float(count))).long().clamp(max=count - 1))[rows]
        shaped = replaced.reshape(-1, *[1] * (x0.dim() - 1))
        samples = torch.where(shaped, kept["samples"].to(x0)[chosen], x0)
        return samples, torch.where(replaced, kept["labels"].to(labels)[chosen], labels), replaced

    def add(self, batch: Batch, x0: Tensor, advantage: Tensor) -> None:
        """Takes in the worst eighth of the joined batch `x0` [B, ...], by `advantage` [B], as far as it is below 0."""
        count = max(1, len(x0) // WORST)
        worst = advantage.topk(count, largest=False).indices
        worst = worst[advantage[worst] < 0]
        new = {"samples": x0[worst].detach().clone(), "labels": batch.labels[worst].clone()}
        kept = self._kept.setdefault(str(batch.exit_rung), {key: value[:0] for key, value in new.items()})
        for key, value in new.items():
            kept[key] = torch.cat((kept[key].to(value), value))[-SIZE:]

    def state_dict(self) -> dict[str, Any]:
        """All of it, by rung."""
        return {rung: dict(kept) for rung, kept in self._kept.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what `state_dict` gave."""
        self._kept = {rung: {key: materialize(value) for key, value in kept.items()} for rung, kept in state.items()}
