"""A memory of failures: the student's worst samples, replayed to the fake score after the student no longer makes them.

With a share rho of the fake score's samples drawn from failures n, DMD's fixed point is ``q* ~ (p - rho n)_+ / w``. The fake
score stays repulsive around places that the student has left, so that the student does not return. Whoever calls this gives it
the joined batch, so that every process holds the same memory.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

WORST = 8  # an eighth of each batch
SIZE, BYTES = 384, 2**28  # the most that is kept of each exit rung: samples, and bytes

Kept = dict[str, Tensor]  # ``samples`` [n, ...], and whatever belongs to them [n, ...], by name


class FailureMemory:
    """The latest of the worst samples with what belongs to them, separate for each exit rung.

    Args:
        share: share of a batch that is replaced by remembered samples.
        device: where failures are kept; None: where they come from.
    """

    def __init__(self, share: float, device: torch.device | None = None):
        self._share, self._device = share, device
        self._kept: dict[int, Kept] = {}

    def recalled(self, values: Mapping[str, Tensor], rungs: Tensor, draws: tuple[Tensor, Tensor]) -> tuple[Kept, Tensor]:
        """`values` with some samples replaced by remembered ones, and which [b] bool.

        Args:
            values: ``samples`` [b, ...], and whatever belongs to them [b, ...], by name; on devices of their own.
            rungs: exit rungs [b]; a sample is replaced by one of its own rung.
            draws: uniform numbers [b] in [0, 1) that say which samples are replaced, and [b] by which.
        """
        shown, (replaced, choice) = dict(values), draws
        replaced = (replaced < self._share).to(rungs.device)
        remembered = torch.zeros_like(replaced)
        for rung, kept in self._kept.items():
            # What belongs to others may have another shape, such as texts that are not padded.
            if not len(kept["samples"]) or not fit(kept, values):
                continue
            here = replaced & (rungs == rung)
            chosen = (choice * len(kept["samples"])).long().clamp(max=len(kept["samples"]) - 1)
            for name, value in shown.items():
                mask = here.to(value.device).reshape(-1, *[1] * (value.dim() - 1))
                shown[name] = torch.where(mask, kept[name][chosen.to(kept[name].device)].to(value), value)
            remembered = remembered | here
        return shown, remembered

    def remember(self, values: Mapping[str, Tensor], advantage: Tensor, rungs: Tensor) -> None:
        """Adds the worst eighth of the joined batch, as far as their samples are finite and their advantages below 0.

        Args:
            values: ``samples`` [B, ...], and whatever belongs to them [B, ...], by name.
            advantage: advantages [B].
            rungs: exit rungs [B].
        """
        worst = advantage.topk(max(1, len(advantage) // WORST), largest=False).indices
        samples = values["samples"]
        finite = torch.isfinite(samples[worst.to(samples.device)]).flatten(1).all(1)
        failed = (advantage[worst] < 0) & finite.to(worst.device)
        rows = torch.stack((worst, rungs.to(worst.device)[worst], failed.long())).cpu()  # the one wait for the device
        worst, rungs, failed = rows[0], rows[1], rows[2].bool()
        for rung in sorted(set(rungs[failed].tolist())):
            of_rung = worst[failed & (rungs == rung)]
            new = {name: value.detach()[of_rung.to(value.device)].to(self._device or value.device)
                   for name, value in values.items()}  # fmt: skip
            self._kept[rung] = _latest(self._kept.get(rung, {}), new)


def fit(kept: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> bool:
    """Whether remembered samples can take the place of those among `values`: by names and shapes."""
    return kept.keys() == values.keys() and all(kept[name].shape[1:] == values[name].shape[1:] for name in values)


def _latest(old: Kept, new: Kept) -> Kept:
    """The newest of both, as many as the memory holds."""
    size = min(SIZE, max(1, BYTES // sum(value[0].nbytes for value in new.values())))
    if not fit(old, new):
        old = {name: value[:0] for name, value in new.items()}
    return {name: torch.cat((old[name].to(value), value))[-size:].clone() for name, value in new.items()}
