"""Sub-interval re-noising: each rung is matched only at noise levels at or above that of the next rung.

The sampler noises the prediction of rung k to the level of rung k + 1 and never evaluates it below. Let u_k be the fraction of
the schedule at rung k, u_n = 0 after the last one, and [low, high] the noise levels in the recipe. Then rung k draws

    u ~ U(max(low, u_{k+1}), high)

Below u_{n-1} only the last rung is left. There a fake score without rung conditioning fits that rung, not a mixture of all.
"""

from __future__ import annotations

from collections.abc import Mapping

from amd_plugin.errors import OptionError
from amd_plugin.schedule.few_step import Ladder
from amd_plugin.schedule.noise import NoiseSchedule


def floors(schedule: NoiseSchedule, ladder: Ladder, windows: Mapping[str, tuple[float, float] | None]) -> list[float]:
    """The lowest noise level u_{k+1} of every rung k of `ladder`, as fractions of `schedule` before the shift.

    Args:
        schedule: noise schedule of the run.
        ladder: rungs of the student.
        windows: noise levels (low, high) by recipe key; None where the recipe sets none.

    Raises:
        OptionError: for a window that leaves no levels to the first rung.
    """
    lowest = [*schedule.above(ladder.timesteps[1:].double()).tolist(), 0.0]
    for key, window in windows.items():
        if window is not None and window[1] <= lowest[0]:
            message = f"re-noises the first of {len(ladder)} steps above {lowest[0]:.3g} of the schedule, and {key} ends at"
            raise OptionError("sub_interval", f"{message} {window[1]}. Raise that, or set train.sub_interval: false")
    return lowest
