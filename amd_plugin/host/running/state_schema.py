"""The schema of a run's state.json, apart from the trainer: whoever only checks a checkpoint need not import networks."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from amd_plugin.host.checkpoint.files import State
from amd_plugin.host.running.run_log import Line, LogState


def _of_a_step(line: Line) -> Line:
    if not math.isfinite(line.get("step", math.nan)):
        raise ValueError("must have a step")
    return line


class RunState(State):
    """What state.json of a run holds.

    Attributes:
        recipe: the resolved recipe.
        name, overrides: the recipe's name, and the overrides that were applied to its file.
        inputs: what the run depends on beside its recipe; None in checkpoints of earlier versions.
        objective, plugins: their own states.
        steering: names of the plugins that move noise levels or strengths; None in checkpoints of earlier versions.
        evaluations: history of the hacking alarm.
        evaluated: held-out metrics of exactly this step; None where it was not evaluated.
        failed_rewards: reward -> shares of failed samples in the last batches.
        skipped: the steps of the last skipped updates.
        log: state of the run's log.
        last_metrics: the metrics written last, in checkpoints of earlier versions.
    """

    recipe: dict[str, Any]
    name: str = ""
    overrides: tuple[str, ...] = ()
    inputs: dict[str, str] | None = None
    objective: Any
    plugins: dict[str, Any]
    steering: list[str] | None = None
    evaluations: list[Annotated[Line, AfterValidator(_of_a_step)]] = Field(default_factory=list)
    evaluated: Line | None = None
    failed_rewards: dict[str, list[float]] = Field(default_factory=dict)
    skipped: list[int] = Field(default_factory=list)
    log: LogState = Field(default_factory=LogState)
    last_metrics: Line = Field(default_factory=dict)
