"""Sub-interval re-noising: a rung is matched at the noise levels at which what it makes is still noise, and at no lower one.

The prediction of rung k is noised again to the level of rung k + 1, and nobody ever sees it below. With u_k the fraction of the
schedule at rung k, u_n = 0 after the last one, and [low, high] the levels that the recipe asks for:

    u ~ U(max(low, u_{k+1}), high)

Below u_{n-1} the last rung is then alone, where a fake score that does not know the rung would fit a mixture of all.
"""

from __future__ import annotations

from collections.abc import Mapping

from amd_plugin.errors import OptionError
from amd_plugin.schedule.few_step import Ladder
from amd_plugin.schedule.noise import NoiseSchedule


def floors(schedule: NoiseSchedule, ladder: Ladder, windows: Mapping[str, tuple[float, float] | None]) -> list[float]:
    """u_{k+1} for every rung k of `ladder`, in fractions of `schedule`, the shift undone.

    Args:
        windows: [low, high] by the key that says so; None where it says nothing.

    Raises:
        OptionError: for a window that leaves nothing to the first rung.
    """
    lowest = [*schedule.above(ladder.timesteps[1:].double()).tolist(), 0.0]
    for key, window in windows.items():
        if window is not None and window[1] <= lowest[0]:
            what = f"re-noises the first of {len(ladder)} steps above {lowest[0]:.3g} of the schedule, and {key} ends at"
            raise OptionError("sub_interval", f"{what} {window[1]}. Raise that, or set train.sub_interval: false")
    return lowest
