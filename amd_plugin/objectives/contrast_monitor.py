"""Messages about a scale of advantage guidance that is too strong or too weak, and about rewards that cannot be learned."""

import logging

from torch import Tensor

from amd_plugin.objectives.contrast_statistics import LARGEST, RATIO, confidence, ratio

log = logging.getLogger(__name__)

TURNS = 100  # student updates between judgements
SILENT = 200  # student updates before a reward counts as one that cannot be learned; scenes need up to 180
TOO_STRONG, TOO_WEAK = 0.35, 0.025  # of the scaled contrast to the matching term

WARN_STRONG = (
    "advantage guidance is %.2f times as long as the matching term, above %g, where it did harm. Lower "
    "objective.advantage_guidance to about %.2g, or set it to auto"
)
WARN_WEAK = (
    "advantage guidance is %.3f times as long as the matching term, below %g, and has hardly any effect. Raise "
    "objective.advantage_guidance to about %.2g, or set it to auto"
)
WARN_CAPPED = (
    "advantage guidance is at its largest scale of %g, and still only %.3f times as long as the matching term. The outcome "
    "table may learn too slowly (train.outcome_lr, in other toolkits outcome_lr), or rewards differ too rarely within prompts "
    "(objective/quiet_share)"
)
WARN_SILENT = (
    "after %d student updates the fake score cannot tell samples that succeeded from samples that failed. The reward may be "
    "noise, or it differs too rarely within prompts (objective/quiet_share): look at it, lower objective.tolerance, or raise "
    "train.group_size. Until then advantage guidance is %s"
)


class ContrastMonitor:
    """A monitor of the contrast that warns once about each kind of problem."""

    def __init__(self) -> None:
        self._turns, self._warned = 0, set[str]()

    def update(self, sums: Tensor, gamma: float, *, automatic: bool) -> None:
        """Counts a student turn, and judges the contrast every `TURNS` turns.

        Args:
            sums: running means [6] of `amd_plugin.objectives.contrast_statistics.ContrastStatistics`.
            gamma: scale in use.
            automatic: whether the scale sets itself.
        """
        self._turns += 1
        if self._turns % TURNS:
            return
        length = float(ratio(sums))
        if confidence(sums) == 0:
            if self._turns < SILENT:
                return
            effect = (
                "off, and so are sharpening and adaptation"
                if automatic
                else f"noise of {gamma * length:.2f} times the matching term"
            )
            self._warn(WARN_SILENT, self._turns, effect)
        elif automatic and gamma >= 0.9 * LARGEST and gamma * length < TOO_WEAK:
            self._warn(WARN_CAPPED, LARGEST, gamma * length)
        elif not automatic and length > 0 and gamma > 0:
            if gamma * length > TOO_STRONG:
                self._warn(WARN_STRONG, gamma * length, TOO_STRONG, RATIO / length)
            elif gamma * length < TOO_WEAK:
                self._warn(WARN_WEAK, gamma * length, TOO_WEAK, RATIO / length)

    def _warn(self, message: str, *values: object) -> None:
        if message not in self._warned:
            self._warned.add(message)
            log.warning(message, *values)
