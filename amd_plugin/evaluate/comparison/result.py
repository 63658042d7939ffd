"""What a comparison found, in numbers. `compare.json` holds a `Comparison`; tables and reports read it."""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import BeforeValidator

from amd_plugin.atomic import check_inside, write_text
from amd_plugin.errors import InputError
from amd_plugin.evaluate.directions import Direction, badness
from amd_plugin.json_files import read

FILE = "compare.json"
# A metric, which JSON has null for where it is not finite.
Number = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]


def names_a_folder(arm: str) -> bool:
    """Whether an arm's name can be that of its folder, on any disk and inside of the comparison's folder."""
    return re.fullmatch(r"[\w.@=+-]+", arm) is not None and arm not in (".", "..")


def run_folder(output: Path, arm: str, seed: int) -> Path:
    """The folder of one run in the comparison's folder `output`.

    Raises:
        InputError: where a link leads out of that, in a stranger's comparison: reports write to runs, too.
    """
    folder = output / "arms" / arm / f"seed-{seed}"
    check_inside(folder, output)
    return folder


class PairedDifference(NamedTuple):
    """The difference of two arms that share their seeds.

    Attributes:
        mean: mean over seeds of the differences.
        deviation: standard deviation over seeds of the differences; 0 for a single seed.
        wins: number of seeds in which the first arm is better.
    """

    mean: float
    deviation: float
    wins: int


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All numbers of a comparison, one value per seed. The fields are the keys of `compare.json`, in its order.

    Attributes:
        task: name of the task.
        recipe: name of the recipe.
        seeds: reported seeds.
        arms: arm -> metric -> one value per reported seed.
        baseline: name of the arm that all others are compared with.
        better: metric -> direction in which it is better.
        held_out: held-out metrics and names of held-out rewards.
        select_seeds: seeds on which every arm's setting was selected; none of them is reported.
        families: arm -> arm that it is a tuning of, which may be itself.
        selected: family -> arm with the best mean rank over `held_out` on `select_seeds`; empty where nothing was selected.
        unused: objective -> options of the recipe that it does not have.
        seconds: arm -> processor seconds of its run, per reported seed; None where they are unknown.
        updates: held-out metric -> arm -> student updates, per reported seed, until the arm was as good as the baseline at its
            end; None where it never was. Metrics without at least four evaluations in a run are left out.
        teacher: metric -> one value per reported seed, measured on the teacher's own many-step samples.
        own_teachers: whether each seed has a teacher of its own; else all seeds share one.
        command: command line that made the comparison.
        commits: git commits of the source that made its runs; empty where it was installed.
    """

    task: str
    recipe: str
    seeds: Sequence[int]
    arms: Mapping[str, Mapping[str, Sequence[Number]]]
    baseline: str
    better: Mapping[str, Direction]
    held_out: Sequence[str]
    select_seeds: Sequence[int] = ()
    families: Mapping[str, str] = field(default_factory=dict)
    selected: Mapping[str, str] = field(default_factory=dict)
    unused: Mapping[str, Sequence[str]] = field(default_factory=dict)
    seconds: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    updates: Mapping[str, Mapping[str, Sequence[int | None]]] = field(default_factory=dict)
    teacher: Mapping[str, Sequence[Number]]
    own_teachers: bool = True
    command: str
    commits: Sequence[str] = ()

    @classmethod
    def from_file(cls, path: Path) -> Comparison:
        """The comparison in the file `path`; raises InputError where it cannot be read."""
        found = read(path, cls, "Run amd-plugin compare again")
        if problem := found._problem():
            raise InputError(f"{path}: {problem}. Run amd-plugin compare again")
        return found

    def _problem(self) -> str:
        """How parts of the comparison contradict each other; empty where they do not."""
        if not self.seeds:
            return "seeds: must name one at least"
        if wrong := [arm for arm in self.arms if not names_a_folder(arm)]:
            return f"arms: must be names of folders, got {wrong[0]!r}"
        if self.baseline not in self.arms:
            return f"baseline: is none of the arms, got {self.baseline!r}"
        metrics = self.arms[self.baseline].keys()
        for name, values in {**{f"arms.{arm}": values for arm, values in self.arms.items()}, "teacher": self.teacher}.items():
            if values.keys() != metrics or any(len(each) != len(self.seeds) for each in values.values()):
                return f"{name}: must have one value per seed for each metric of the others"
        for metric, updates in self.updates.items():
            if updates.keys() != self.arms.keys() or any(len(each) != len(self.seeds) for each in updates.values()):
                return f"updates.{metric}: must have one value per seed for each of the arms"
        for family, arm in self.selected.items():
            if arm not in self.arms:
                return f"selected.{family}: is none of the arms, got {arm!r}"
        return "" if metrics <= self.better.keys() else "better: does not name every metric"

    def write(self, folder: Path) -> None:
        """Writes `compare.json` to `folder`."""
        write_text(folder / FILE, self.as_json())

    def as_json(self) -> str:
        """The text of `compare.json`; a metric that is not finite is null."""
        content = asdict(self)
        for metrics in (*content["arms"].values(), content["teacher"]):
            for metric, values in metrics.items():
                metrics[metric] = [value if math.isfinite(value) else None for value in values]
        return json.dumps(content, indent=1, allow_nan=False)

    @property
    def metrics(self) -> list[str]:
        """Metrics that every arm has."""
        return list(self.arms[self.baseline])

    def mean(self, arm: str, metric: str) -> float:
        """Mean over seeds of `metric`."""
        return mean(self.arms[arm][metric])

    def badness_per_seed(self, arm: str, metric: str) -> list[float]:
        """Values [seeds] of `metric`, turned so that lower is better."""
        return [badness(value, self.better[metric]) for value in self.arms[arm][metric]]

    def paired(self, arm: str, against: str, metric: str) -> PairedDifference:
        """The difference of `arm` and `against` in `metric`, paired by seed."""
        pairs = zip(self.arms[arm][metric], self.arms[against][metric], strict=True)
        differences = [a - b for a, b in pairs]
        turned = zip(self.badness_per_seed(arm, metric), self.badness_per_seed(against, metric), strict=True)
        return PairedDifference(mean(differences), deviation(differences), sum(a < b for a, b in turned))

    def tunings_of_baseline(self) -> list[str]:
        """The baseline, and its tunings among the arms."""
        return [arm for arm in self.arms if arm == self.baseline or arm.startswith(f"{self.baseline}@")]

    def best_tuned(self, metric: str) -> str:
        """The baseline arm, tuned or not, with the best mean of `metric`."""
        return min(
            self.tunings_of_baseline(), key=lambda arm: _finite_first(badness(self.mean(arm, metric), self.better[metric]))
        )

    def selected_arms(self) -> tuple[str, list[str]]:
        """The setting that was selected for the baseline, and the settings that were selected for the other arms."""
        against = self.selected.get(self.baseline, self.baseline)
        return against, [arm for arm in self.selected.values() if arm != against]


def best_overall(
    arms: Mapping[str, Mapping[str, Sequence[float]]], better: Mapping[str, Direction], metrics: Iterable[str]
) -> str:
    """The arm with the best mean rank over `metrics`, each by its mean over seeds; the earlier one of two that tie."""
    ranks = dict.fromkeys(arms, 0)
    for metric in metrics:
        worst_last = {arm: badness(mean(values[metric]), better[metric]) for arm, values in arms.items()}
        for rank, arm in enumerate(sorted(arms, key=lambda arm: _finite_first(worst_last[arm]))):
            ranks[arm] += rank
    return min(arms, key=ranks.__getitem__)


def _finite_first(badness: float) -> float:
    """`badness` for a sort: that of an arm that has diverged is the largest, where NaN would stay wherever it stands."""
    return math.inf if math.isnan(badness) else badness


def mean(values: Sequence[float]) -> float:
    """Mean over seeds; NaN where a value is not finite."""
    return statistics.fmean(values) if all(map(math.isfinite, values)) else math.nan


def deviation(values: Sequence[float]) -> float:
    """Standard deviation over seeds; 0 for a single one, NaN where a value is not finite."""
    if not all(map(math.isfinite, values)):
        return math.nan
    return statistics.stdev(values) if len(values) > 1 else 0.0
