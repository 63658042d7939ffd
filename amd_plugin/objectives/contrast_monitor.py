"""Messages about a scale of advantage guidance that is too strong or too weak, and about rewards that cannot be learned."""

import logging

from torch import Tensor

from amd_plugin.objectives.contrast_statistics import Push, confidence, ratio

log = logging.getLogger(__name__)

TURNS = 100  # student updates between judgements
SILENT = 200  # student updates before a reward counts as one that cannot be learned; scenes need up to 180

WARN_STRONG = (
    "advantage guidance is %.2f times as long as the matching term%s, above %g, where it did harm. Lower "
    "objective.advantage_guidance to about %.2g, or set it to auto"
)
WARN_WEAK = (
    "advantage guidance is %.3f times as long as the matching term%s, below %g, and has hardly any effect. Raise "
    "objective.advantage_guidance to about %.2g, or set it to auto"
)
WARN_CAPPED = (
    "advantage guidance is at its largest scale of %g, and still only %.3f times as long as the matching term%s. The outcome "
    "table may learn too slowly (train.outcome_lr, in other toolkits outcome_lr), or rewards differ too rarely within prompts "
    "(objective/quiet_share)"
)
WARN_SILENT = (
    "after %d student updates the fake score cannot tell samples that succeeded from samples that failed. The reward may be "
    "noise, or it differs too rarely within prompts (objective/quiet_share): look at it, lower objective.tolerance, or raise "
    "train.group_size. Until then advantage guidance is %s"
)

WARN_NOWHERE = (
    "advantage guidance has no effect: after %d student updates no sample was compared at low noise, the lower third of the "
    "schedule. Set objective.advantage_levels to all, or lower the noise levels of the student's turn (train.sigma, "
    "objective.match_sigma)"
)


class ContrastMonitor:
    """A monitor of the contrast that warns once about each kind of problem.

    Args:
        push: what the automatic scale aims at, and at which noise levels guidance applies.
    """

    def __init__(self, push: Push) -> None:
        self._push, self._where = push, "" if push.rests else " at low noise"
        self._turns, self._warned = 0, set[str]()

    def update(self, running: Tensor, gamma: float, *, automatic: bool) -> None:
        """Counts a student turn, and judges the contrast every `TURNS` turns.

        Args:
            running: running means [3, 6] of `amd_plugin.objectives.contrast_statistics.ContrastStatistics`.
            gamma: scale in use.
            automatic: whether the scale sets itself.
        """
        self._turns += 1
        if self._turns % TURNS:
            return
        length, push = float(ratio(running[: self._push.bands].sum(0))), self._push
        if confidence(running.sum(0)) == 0:
            if self._turns < SILENT:
                return
            effect = (
                "off, and so are sharpening and adaptation"
                if automatic
                else f"noise of {gamma * length:.2f} times the matching term"
            )
            self._warn(WARN_SILENT, self._turns, effect)
        elif length == 0:
            self._warn(WARN_NOWHERE, self._turns)
        elif automatic and gamma >= 0.9 * push.largest and gamma * length < push.weak:
            self._warn(WARN_CAPPED, push.largest, gamma * length, self._where)
        elif not automatic and gamma > 0:
            if gamma * length > push.strong:
                self._warn(WARN_STRONG, gamma * length, self._where, push.strong, push.ratio / length)
            elif gamma * length < push.weak:
                self._warn(WARN_WEAK, gamma * length, self._where, push.weak, push.ratio / length)

    def _warn(self, message: str, *values: object) -> None:
        if message not in self._warned:
            self._warned.add(message)
            log.warning(message, *values)
