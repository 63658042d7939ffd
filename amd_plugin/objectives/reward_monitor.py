"""A warning for rewards whose differences within prompts are almost always below the tolerance."""

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
    """A monitor of rewards that differ within their prompt by less than the tolerance; it warns once."""

    def __init__(self) -> None:
        self._batches = 0
        self._differing = torch.zeros(2)  # summed shares of samples: with different rewards; with those within the tolerance

    def update(self, zero_spread_share: Tensor, quiet_share: Tensor, tolerance: float, unit: float) -> None:
        """Adds a batch.

        Args:
            zero_spread_share: share of samples in groups with equal rewards, a 0-dim tensor.
            quiet_share: share of samples in groups with no advantage but 0, a 0-dim tensor.
            tolerance: reward difference that counts as none, in units or spreads.
            unit: divisor of rewards; 0 for their spread.
        """
        self._batches += 1
        if not tolerance or self._batches > BATCHES:
            return
        shares = torch.stack((1 - zero_spread_share, quiet_share - zero_spread_share))
        self._differing = self._differing.to(shares) + shares
        if self._batches == BATCHES and self._differing[1] > max(1, 0.95 * float(self._differing[0])):
            kind, lever = ("units", f" or objective.unit ({unit:g})") if unit else ("spreads", "")
            log.warning(WARN_ALL_EQUAL, BATCHES, tolerance, kind, lever)
