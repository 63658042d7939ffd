"""The metrics of a turn's rewards, and a warning for rewards whose differences within prompts are below the tolerance."""

import logging

import torch
from torch import Tensor

log = logging.getLogger(__name__)

BATCHES = 50  # scored batches after which the user is warned

WARN_ALL_EQUAL = (
    "In %d batches, rewards within a prompt almost never differed by more than objective.tolerance (%g %s), so AMD is "
    "acting as plain DMD. If such differences matter, lower objective.tolerance%s"
)


class RewardMonitor:
    """The rewards of a turn, which come rung by rung; it warns once about those that differ by less than the tolerance.

    A turn's rungs come in rising order. So a rung that is no higher than the one before starts a turn, and so does the first
    one after `close`.
    """

    def __init__(self) -> None:
        self._batches, self._rung, self._closed = 0, 0, True
        self._calls: list[tuple[int, dict[str, Tensor]]] = []  # of the turn: samples, and their metrics
        self._differing = torch.zeros(2)  # summed shares of samples: with different rewards; with those within the tolerance

    def add(self, metrics: dict[str, Tensor], samples: int, rung: int, tolerance: float, unit: float) -> None:
        """Adds the samples of one rung.

        Args:
            metrics: means over the samples, 0-dim tensors. ``zero_spread_share`` is the share of samples in groups with equal
                rewards, and ``quiet_share`` of those in groups with no advantage but 0.
            samples: number of samples.
            rung: index of their exit rung, from 0.
            tolerance: reward difference that counts as none, in units or spreads.
            unit: divisor of rewards; 0 for their spread.
        """
        if self._closed or rung <= self._rung:
            self._judge(tolerance, unit)
            self._calls = []
        self._calls.append((samples, metrics))
        self._rung, self._closed = rung, False

    def close(self) -> None:
        """Ends the turn: what is added next belongs to another. Its metrics stay."""
        self._closed = True

    def metrics(self) -> dict[str, Tensor]:
        """Means over the samples of the turn, with all their rungs; empty before the first."""
        total = sum(samples for samples, _ in self._calls)
        names = self._calls[0][1] if self._calls else {}
        return {
            name: torch.stack([metrics[name] * (samples / total) for samples, metrics in self._calls]).sum() for name in names
        }

    def _judge(self, tolerance: float, unit: float) -> None:
        """Counts the batch of the turn before, and warns after the last one that is counted."""
        if not self._calls or self._batches >= BATCHES:
            return
        self._batches += 1
        if not tolerance:
            return
        turn = self.metrics()
        shares = torch.stack((1 - turn["zero_spread_share"], turn["quiet_share"] - turn["zero_spread_share"]))
        self._differing = self._differing.to(shares) + shares
        if self._batches == BATCHES and self._differing[1] > max(1, 0.95 * float(self._differing[0])):
            kind, lever = ("units", f" or objective.unit ({unit:g})") if unit else ("spreads", "")
            log.warning(WARN_ALL_EQUAL, BATCHES, tolerance, kind, lever)
