"""The reward-hacking alarm: the training reward rises while held-out metrics fall.

At every held-out evaluation the training rewards score the same samples that the held-out metrics judge: same prompts, same
noise, so that what changes is the student. Over the last 8, 16, 32 ... evaluations (all of them while there are fewer than 8),
a reward counts as hacked if:

* it rises: Kendall's tau against time is positive with a one-sided p of at most 0.05 (the Mann-Kendall trend test), by at least
  a tenth of its standard deviation over samples; and
* held-out metrics fall, by the same test the other way and at least 5 % of where they started: half of the recipe's, or more
  than rise.

One falling metric is no proof: honest runs trade quality for diversity too. The rule needs two trends at once, so pure noise
passes it with a probability of about 0.05^2 per look. It misses a reward that was hacked from the start and no longer rises,
and damage that no held-out metric measures.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from scipy.stats import kendalltau

from amd_plugin.host.evaluation.health import HEALTH

FEWEST, WINDOW = 4, 8
ALPHA, RISE, FALL = 0.05, 0.1, 0.05

Row = Mapping[str, float]


class Trend(NamedTuple):
    """The trend of a value over a window of evaluations.

    Attributes:
        first, last: values at both ends.
        tau: Kendall's tau against time.
        p: its one-sided p value.
    """

    first: float
    last: float
    tau: float
    p: float

    def __str__(self) -> str:
        return f"{self.first:.4g} -> {self.last:.4g} (tau {self.tau:+.2f}, p {self.p:.3f})"


class HackingFinding(NamedTuple):
    """A reward that rose while held-out metrics got worse.

    Attributes:
        reward: name of the reward.
        rise: trend of the reward.
        falls: metric -> trend, of the metrics that got worse.
        judged: number of held-out metrics.
        since, until: steps of the first and the last evaluation of the window.
    """

    reward: str
    rise: Trend
    falls: dict[str, Trend]
    judged: int
    since: int
    until: int

    def __str__(self) -> str:
        falls = ", ".join(f"{name} {trend}" for name, trend in self.falls.items())
        return (
            f"reward '{self.reward}' may be hacked: from step {self.since} to {self.until} it rose, {self.rise}, while "
            f"{len(self.falls)} of {self.judged} held-out metrics got worse: {falls}"
        )


class HackingAlarm:
    """Keeps the history of evaluations, and finds rewards that look hacked.

    Args:
        rewards: name -> weight of the training rewards. A reward of negative weight is pushed down, and hacked if it falls.
        directions: held-out metric -> ``up``, ``down``, or ``one`` for ratios that should be 1.

    Attributes:
        triggered: whether a reward looked hacked at the last evaluation.
    """

    def __init__(self, rewards: Mapping[str, float], directions: Mapping[str, str]):
        self._signs = {name: math.copysign(1.0, weight) for name, weight in rewards.items() if weight}
        self._directions = dict(directions)
        self._rows: list[dict[str, float]] = []
        self.triggered = False

    def add(self, row: Row) -> HackingFinding | None:
        """Adds one evaluation, a line of metrics.jsonl; returns the first reward that looks hacked by now."""
        names = [f"{key}/{name}" for name in self._signs for key in ("evaluated_reward", "evaluated_spread")]
        names += ["step", *HEALTH, *(f"held_out/{name}" for name in self._directions)]
        self._rows = [earlier for earlier in self._rows if earlier.get("step") != row["step"]]  # evaluated again
        self._rows.append({name: float(row[name]) for name in names if math.isfinite(row.get(name, math.nan))})
        findings = (self._judge(rows, name) for rows in windows(self._rows) for name in self._signs)
        first = next((finding for finding in findings if finding is not None), None)
        self.triggered = first is not None
        return first

    @property
    def rows(self) -> Sequence[Row]:
        """The history of evaluations, the last one last."""
        return self._rows

    def state_dict(self) -> list[dict[str, float]]:
        """The history of evaluations, JSON-able."""
        return list(self._rows)

    def load_state_dict(self, state: Sequence[Mapping[str, float]]) -> None:
        """Restores the history that `state_dict` returned."""
        self._rows = [dict(row) for row in state]

    def _judge(self, rows: Sequence[Row], reward: str) -> HackingFinding | None:
        rise = _rising(rows, f"evaluated_reward/{reward}", self._signs[reward])
        spread = rows[0].get(f"evaluated_spread/{reward}", math.nan)
        if rise is None or not abs(rise.last - rise.first) >= RISE * spread:
            return None
        falls, rises = {}, 0
        for metric, direction in self._directions.items():
            name, centre = f"held_out/{metric}", 1.0 if direction == "one" else 0.0
            off = [{"value": abs(row[name] - centre)} for row in rows if name in row]
            if len(off) < len(rows):
                continue
            worse = _rising(off, "value", -1.0 if direction == "up" else 1.0)
            rises += _rising(off, "value", 1.0 if direction == "up" else -1.0) is not None
            # Changes of a ratio are compared with 1: its distance from 1 may be 0.
            size = 1.0 if direction == "one" else off[0]["value"]
            if worse is not None and abs(worse.last - worse.first) >= FALL * size:
                falls[metric] = worse._replace(first=rows[0][name], last=rows[-1][name])
        if not falls or (2 * len(falls) < len(self._directions) and len(falls) <= rises):
            return None
        return HackingFinding(reward, rise, falls, len(self._directions), int(rows[0]["step"]), int(rows[-1]["step"]))


def warning(finding: HackingFinding, levers: Sequence[str]) -> str:
    """What a user is told about `finding`, and advised to do.

    Args:
        finding: a reward that looks hacked.
        levers: options that set the influence of the reward, with their values; none where none is known.
    """
    lower = " or ".join(levers) or "the strength of the objective"
    return f"{finding}. Lower {lower}, or give it less weight beside another reward; look at the samples first"


def windows(rows: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """The last 8, 16, 32 ... of `rows`; all of them where there are fewer, but at least four."""
    if FEWEST <= len(rows) < WINDOW:
        yield rows
    size = WINDOW
    while size <= len(rows):
        yield rows[-size:]
        size *= 2


def _rising(rows: Sequence[Row], key: str, sign: float) -> Trend | None:
    """The trend of `key` in the direction of `sign`; None where it is not significant, or first and last contradict it."""
    values = [row[key] for row in rows if key in row]
    if len(values) < len(rows) or sign * (values[-1] - values[0]) <= 0:
        return None
    result = kendalltau(range(len(values)), values, alternative="greater" if sign > 0 else "less")
    return Trend(values[0], values[-1], result.statistic, result.pvalue) if result.pvalue <= ALPHA else None
