"""What a study, a target and a parity of docs/evidence.md are. `evidence_studies.py` lists them, `evidence.py` runs them."""

from dataclasses import dataclass
from typing import Literal

# Metric of the studies of guidance: distance to the teacher's own samples at the same guidance scale.
FOLLOWED = "sliced_wasserstein_to_teacher"
# Target.against for the DMD arm with the best mean of the target's own metric.
BEST_DMD = "best dmd"


@dataclass(frozen=True)
class Study:
    """One comparison, and one table of the page.

    Attributes:
        title: heading of the section.
        question: first paragraph of the section.
        recipe: name of the recipe.
        settings: overrides for all arms, ``a.b=value`` each.
        seeds: seeds as for `amd-plugin compare --seeds`.
        objectives: objectives or variants, the baseline first.
        more: further arms, ``name=objective key=value ...`` each.
        tune: grid of values that every arm is tuned over, ``key=v1,v2`` each.
        ablate: whether AMD's parts and the control arms run too.
        followed: guidance scale of the teacher whose samples the students are also compared with; None for no comparison.
        start: overrides of a run of the baseline, from whose student all arms start; None to start from the teacher.
    """

    title: str
    question: str
    recipe: str
    settings: tuple[str, ...] = ()
    seeds: str = "8"
    objectives: tuple[str, ...] = ("dmd",)
    more: tuple[str, ...] = ()
    tune: tuple[str, ...] = ()
    ablate: bool = False
    followed: float | None = None
    start: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Target:
    """A target that was set before the study was run.

    Attributes:
        study: name of the study.
        arm: arm that should reach the target.
        against: arm to compare with, or `BEST_DMD`.
        metric: metric of the comparison.
        bound: value to reach; the metric's direction decides on which side.
        bound_of: quantity that is bounded: difference of means, ratio of means, or the arm's own mean.
        wins: number of seeds in which the arm must be better.
    """

    study: str
    arm: str
    against: str
    metric: str
    bound: float
    bound_of: Literal["difference", "ratio", "value"] = "difference"
    wins: int = 0


@dataclass(frozen=True)
class Parity:
    """The claim that an arm is no worse than another, and unless it may win, no better either.

    A paired t-test at 5 % decides. It is not corrected for the number of claims, so that doubt counts against the arm.

    Attributes:
        study: name of the study.
        arm: arm of the claim.
        against: arm to compare with.
        metric: metric of the comparison.
        may_win: whether the arm may be better.
    """

    study: str
    arm: str
    against: str
    metric: str
    may_win: bool
