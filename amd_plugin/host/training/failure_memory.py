"""The memory of failures of a batch, whose labels stand for its conditions."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from amd_plugin.host.training.batch import Batch
from amd_plugin.models.lazy_weights import materialize
from amd_plugin.objectives.failure_memory import FailureMemory


class BatchFailures(FailureMemory):
    """`FailureMemory` of samples with their labels."""

    def recall(self, batch: Batch, rows: slice, x0: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(samples [b, ...], labels [b], replaced [b] bool): `x0` and `labels` of `rows`, some replaced by remembered samples.

        The choice is drawn for the joined batch, from the batch's own generators.
        """
        replaced, choice = batch.uniform("memory", (0.0, 1.0))[rows], batch.uniform("remembered", (0.0, 1.0))[rows]
        values = {"samples": x0, "labels": labels}
        shown, remembered = self.recalled(values, batch.rungs[rows].to(replaced.device), (replaced, choice))
        return shown["samples"], shown["labels"], remembered

    def add(self, batch: Batch, x0: Tensor, advantage: Tensor) -> None:
        """Adds the worst samples of the joined batch `x0` [B, ...], of `advantage` [B]."""
        self.remember({"samples": x0, "labels": batch.labels}, advantage, batch.rungs)

    def state_dict(self) -> dict[str, Any]:
        """All samples and labels, by exit rung."""
        return {str(rung): dict(kept) for rung, kept in self._kept.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the result of `state_dict`."""
        self._kept = {int(rung): {name: materialize(value) for name, value in kept.items()} for rung, kept in state.items()}
