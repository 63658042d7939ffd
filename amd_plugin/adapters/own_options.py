"""Options of an adapter beside those of the objective, in one mapping with them in the host's configuration."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from amd_plugin.errors import InputError

OUTCOME_LR = 5e-3  # as `train.outcome_lr`


class OwnOptions(NamedTuple):
    """What the user said to the adapter itself.

    Attributes:
        reward: rewards to train on, see `amd_plugin.adapters.named_rewards.make_reward`; None for none.
        held_out: rewards that judge the samples of the host's validation, and are not trained on; None for none.
        rung_conditioning: whether the fake score is conditioned on the exit rung of each sample.
        rollouts: see `amd_plugin.adapters.harvest.checked_rollouts`, which checks it for a host.
        group_size: number of neighbouring samples of a joined batch that get one row of the host's data; 1 leaves its order.
        outcome_lr: learning rate of the table of outcomes, where it is above that of the fake score's optimizer.
    """

    reward: Any = None
    held_out: Any = None
    rung_conditioning: bool = False
    rollouts: Any = "fresh"
    group_size: int = 1
    outcome_lr: float = OUTCOME_LR


def split_options(given: Any, where: str) -> tuple[dict[str, Any], OwnOptions]:
    """The options of the objective, and those of the adapter, of the mapping `given` at the place `where`; None is {}.

    Raises:
        InputError: for no mapping, or an option of the adapter that is of another type.
    """
    given = {} if given is None else given  # and `false` or an empty list is somebody's mistake
    if not isinstance(given, Mapping):
        raise InputError(f"{where}: must be a mapping of options, got {given!r}")
    options = dict(given)
    own = OwnOptions(**{name: options.pop(name) for name in OwnOptions._fields if name in options})
    check_switch(own.rung_conditioning, f"{where}.rung_conditioning")
    check_count(own.group_size, f"{where}.group_size", 1)
    check_rate(own.outcome_lr, f"{where}.outcome_lr")
    return options, own


def check_switch(value: Any, where: str) -> None:
    """Raises InputError for a `value` that is neither true nor false."""
    if not isinstance(value, bool):
        raise InputError(f"{where}: must be true or false, got {value!r}")


def check_count(value: Any, where: str, least: int) -> None:
    """Raises InputError for a `value` that is no whole number from `least` on."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{where}: must be a whole number from {least}, got {value!r}")


def check_rate(value: Any, where: str) -> None:
    """Raises InputError for a `value` that is no finite number above 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not (value > 0 and math.isfinite(value)):
        raise InputError(f"{where}: must be a finite number above 0, got {value!r}")
