"""A memory of failures: the student's worst samples, replayed to the fake score after the student no longer makes them.

With a share rho of the fake score's samples drawn from failures n, DMD's fixed point is ``q* ~ (p - rho n)_+ / w``. The fake
score stays repulsive around places that the student has left, so that the student does not return. Every process holds the same
memory.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from amd_plugin.host.training.batch import Batch
from amd_plugin.models.lazy_weights import materialize

WORST = 8  # an eighth of each batch
SIZE = 384  # samples kept per exit rung


class FailureMemory:
    """The latest of the worst samples, separate for each exit rung.

    Args:
        share: the share of a batch that is replaced by remembered samples.
    """

    def __init__(self, share: float):
        self._share = share
        self._failures: dict[str, dict[str, Tensor]] = {}

    def recall(self, batch: Batch, rows: slice, x0: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(samples [b, ...], labels [b], replaced [b] bool): `x0` and `labels` of `rows`, some replaced by remembered samples.

        The choice is drawn for the joined batch, from the batch's own generators.
        """
        replaced = (batch.uniform("memory", (0.0, 1.0)) < self._share)[rows]
        choice, rungs = batch.uniform("remembered", (0.0, 1.0))[rows], batch.rungs[rows].to(replaced.device)
        remembered = torch.zeros_like(replaced)
        for rung, failures in self._failures.items():
            if not (count := len(failures["labels"])):
                continue
            here = replaced & (rungs == int(rung))
            chosen = (choice * count).long().clamp(max=count - 1)
            mask = here.reshape(-1, *[1] * (x0.dim() - 1))
            x0 = torch.where(mask, failures["samples"].to(x0)[chosen], x0)
            labels = torch.where(here.cpu(), failures["labels"].cpu()[chosen.cpu()], labels)
            remembered = remembered | here
        return x0, labels, remembered

    def add(self, batch: Batch, x0: Tensor, advantage: Tensor) -> None:
        """Adds the worst eighth of the joined batch `x0` [B, ...], if finite and of an `advantage` [B] below 0."""
        count = max(1, len(x0) // WORST)
        worst = advantage.topk(count, largest=False).indices
        worst = worst[(advantage[worst] < 0) & torch.isfinite(x0[worst]).flatten(1).all(1)]
        rungs = batch.rungs.to(worst.device)[worst]
        for rung in sorted(set(batch.rungs.tolist())):
            of_rung = worst[rungs == rung]
            new = {"samples": x0[of_rung].detach().clone(), "labels": batch.labels[of_rung.cpu()].clone()}
            failures = self._failures.setdefault(str(rung), {key: value[:0] for key, value in new.items()})
            for key, value in new.items():
                failures[key] = torch.cat((failures[key].to(value), value))[-SIZE:]

    def state_dict(self) -> dict[str, Any]:
        """All samples and labels, by exit rung."""
        return {rung: dict(failures) for rung, failures in self._failures.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the result of `state_dict`."""
        self._failures = {
            rung: {key: materialize(value) for key, value in failures.items()} for rung, failures in state.items()
        }
