"""What AMD is worth, measured: every study of docs/evidence.md, and the page itself.

    python benchmarks/evidence.py run                      # all studies; stopped, it goes on where it was
    python benchmarks/evidence.py run plane_unreliable     # one of them
    python benchmarks/evidence.py page                     # docs/evidence.md from docs/results/*.json, in a second

A study is an `amd-plugin compare`: arms x seeds on one recipe, each run a folder under --output that is kept. Its numbers go
to docs/results/STUDY.json and STUDY.md. Where guidance is meant to be followed, the distance to the teacher's own guided
samples is added to what the task measures. Hours on two cores, all together.
"""

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from rich.console import Console
from safetensors.torch import load_file
from scipy.stats import ttest_rel

from amd_plugin import metrics
from amd_plugin.evaluate.comparison.compare import arms, compare, parse_seeds
from amd_plugin.evaluate.comparison.tables import best_tuned, deviation, markdown, paired
from amd_plugin.models.backbone import load_backbone
from amd_plugin.models.teacher_samples import teacher_samples
from amd_plugin.plugins import get_plugin_manager
from amd_plugin.recipe.loading import load

ROOT = Path(__file__).parents[1]
RESULTS, PAGE = ROOT / "docs" / "results", ROOT / "docs" / "evidence.md"
FOLLOWED = "sliced_wasserstein_to_teacher"


@dataclass(frozen=True)
class Study:
    """One table of the page.

    Attributes:
        title, question: for the page.
        recipe, settings: what is trained; `settings` are overrides for all arms.
        seeds: as for `amd-plugin compare`.
        objectives, more, tune, ablate: its arms, as for `amd_plugin.evaluate.comparison.compare.arms`.
        followed: guidance scale of the teacher whose samples the students are also compared with; None: not done.
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


@dataclass(frozen=True)
class Target:
    """What was aimed at before anything was measured: `arm` against `against` in `metric`, a difference or a ratio.

    Attributes:
        against: an arm, or ``best dmd``: the tuning with the best mean of that very metric.
        bound: the difference, or with `ratio` the quotient of means, that must be reached; ``better`` says on which side.
        bound_of: ``difference``, ``ratio`` or ``value``.
        wins: in how many seeds at least.
    """

    study: str
    arm: str
    against: str
    metric: str
    bound: float
    bound_of: str = "difference"
    wins: int = 0


@dataclass(frozen=True)
class Parity:
    """That `arm` is no worse in `metric` than `against`, and unless it `may_win`, no better either.

    A paired t-test at 5 % decides, uncorrected, so that a doubtful harm counts as one.
    """

    study: str
    arm: str
    against: str
    metric: str
    may_win: bool


def run(name: str, study: Study, output: Path, workers: int | None, console: Console) -> None:
    """Runs what is missing of a study, and writes its numbers."""
    plugins = get_plugin_manager()
    config = load(study.recipe, plugins, study.settings).config
    chosen = arms(study.objectives, config.rewards, ablate=study.ablate, tune=study.tune, more=study.more)
    folder = output / name
    compare(study.recipe, chosen, parse_seeds(study.seeds), study.settings, folder, workers, console)
    content = json.loads((folder / "compare.json").read_text())
    content["command"] = f"python benchmarks/evidence.py run {name}"
    if study.followed is not None:
        content["better"][FOLLOWED] = "down"
        for arm, values in content["arms"].items():
            values[FOLLOWED] = [_to_teacher(study, seed, folder / "arms" / arm / f"seed-{seed}") for seed in content["seeds"]]
        content["teacher"][FOLLOWED] = [0.0] * len(content["seeds"])
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
    (RESULTS / f"{name}.md").write_text(markdown(content))


def _to_teacher(study: Study, seed: int, folder: Path) -> float:
    """Sliced Wasserstein distance, mean over classes, of a run's last samples to guided ones of its teacher."""
    plugins = get_plugin_manager()
    recipe = load(study.recipe, plugins, study.settings)
    config, task = recipe.config, recipe.task
    backbone = load_backbone(config.model, task, seed, plugins.families())
    made = load_file(folder / "samples" / "latest.safetensors")
    guided, labels = teacher_samples(backbone, config.model, task, seed, len(made["samples"]), study.followed or 1.0, None)
    by_class = [(made["samples"][made["labels"] == c], guided[labels == c]) for c in labels.unique().tolist()]
    return statistics.fmean(metrics.sliced_wasserstein(a, b) for a, b in by_class)


def page(studies: Mapping[str, Study], targets: Sequence[Target], parities: Sequence[Parity]) -> str:
    """The evidence page, from committed numbers only."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, keep_trailing_newline=True
    )
    found = {name: json.loads(path.read_text()) for name in studies if (path := RESULTS / f"{name}.json").is_file()}
    sections = [_section(name, studies[name], content) for name, content in found.items()]
    missing = [name for name in studies if name not in found]
    aimed = [_target_row(target, found[target.study]) for target in targets if target.study in found]
    everywhere = [_parity_row(parity, found[parity.study]) for parity in parities if parity.study in found]
    template = environment.get_template("evidence.md.j2")
    return template.render(sections=sections, targets=aimed, everywhere=everywhere, missing=missing)


def _section(name: str, study: Study, content: Mapping[str, Any]) -> dict[str, Any]:
    """A study's table: every arm's values, how it compares with the best-tuned DMD, and what it cost."""
    shown = [m for m in (*content["held_out"], *(m for m in ("diversity", FOLLOWED) if m in content["better"]))]
    shown = list(dict.fromkeys(m for m in shown if m in content["better"]))
    best = {metric: best_tuned(content, metric) for metric in shown}
    significant = _holm(content, shown, best)
    cost = {arm: statistics.fmean(s for s in values if s is not None) for arm, values in content["seconds"].items()
            if any(s is not None for s in values)}  # fmt: skip
    base = cost.get(content["baseline"])
    rows = []
    for arm, values in content["arms"].items():
        cells = []
        for metric in shown:
            text = f"{statistics.fmean(values[metric]):.3f} ± {deviation(values[metric]):.3f}"
            if arm != best[metric]:
                text += f" ({paired(content, arm, best[metric], metric)[2]})"
            mark = significant.get((arm, metric), "")
            cells.append(f"**{text}**" if mark == "better" else f"*{text}*" if mark == "worse" else text)
        relative = f"{cost[arm] / base:.2f}" if base and arm in cost else "-"
        rows.append({"name": arm, "cells": cells, "cost": relative})
    arrows = {"up": "↑", "down": "↓", "one": "→ 1"}
    heads = [f"{metric} {arrows[content['better'][metric]]}" for metric in shown]
    return {
        "name": name, "study": study, "seeds": content["seeds"], "metrics": heads,
        "rows": rows, "best": ", ".join(f"{m}: {arm}" for m, arm in best.items()), "command": content["command"],
        "teacher": [f"{statistics.fmean(content['teacher'][m]):.3f}" for m in shown],
    }  # fmt: skip


def _holm(content: Mapping[str, Any], shown: Sequence[str], best: Mapping[str, str]) -> dict[tuple[str, str], str]:
    """(arm, metric) -> better or worse than the best-tuned DMD, at 5 % over all arms of the table and metric (Holm, 1979)."""
    found = {}
    for metric in shown:
        others = [arm for arm in content["arms"] if arm != best[metric] and not arm.startswith("dmd@") and arm != "dmd"]
        tests = {}
        for arm in others:
            if (p := _p_value(content, arm, best[metric], metric)) is not None:
                tests[arm] = p
        for rank, arm in enumerate(sorted(tests, key=lambda name: tests[name])):
            if not tests[arm] * (len(tests) - rank) < 0.05:
                break
            found[arm, metric] = "better" if _better(content, arm, best[metric], metric) else "worse"
    return found


def _p_value(content: Mapping[str, Any], arm: str, against: str, metric: str) -> float | None:
    """Of a paired t-test over seeds; None where there is nothing to test: one seed, or no difference in any."""
    a, b = (_errors(content, name, metric) for name in (arm, against))
    return float(ttest_rel(a, b).pvalue) if len(a) > 1 and a != b else None


def _better(content: Mapping[str, Any], arm: str, against: str, metric: str) -> bool:
    """On average over seeds."""
    mine, theirs = (statistics.fmean(_errors(content, name, metric)) for name in (arm, against))
    return mine < theirs


def _errors(content: Mapping[str, Any], arm: str, metric: str) -> list[float]:
    """A metric's values turned so that less is better."""
    turn = {"up": lambda v: -v, "down": lambda v: v, "one": lambda v: abs(v - 1)}[content["better"][metric]]
    return [turn(value) for value in content["arms"][arm][metric]]


def _target_row(target: Target, content: Mapping[str, Any]) -> dict[str, str]:
    """What was aimed at, what came out, and whether that is met."""
    against = best_tuned(content, target.metric) if target.against == "best dmd" else target.against
    mean = lambda arm: statistics.fmean(content["arms"][arm][target.metric])  # noqa: E731
    difference, sd, wins = paired(content, target.arm, against, target.metric)
    up = content["better"][target.metric] == "up"
    if target.bound_of == "ratio":
        value, aim, shown = mean(target.arm) / mean(against), f"at most {target.bound:g} x", "{:.2f} x"
    elif target.bound_of == "value":
        value, aim, shown = mean(target.arm), f"{'at least' if up else 'at most'} {target.bound:g}", "{:.3f}"
    else:
        value, aim, shown = difference, f"{'at least' if up else 'at most'} {target.bound:+g}", "{:+.3f}"
    reached = value >= target.bound if up and target.bound_of != "ratio" else value <= target.bound
    spread = f" ± {sd:.3f}" if target.bound_of == "difference" else ""
    met = reached and wins >= target.wins
    missed = "" if reached else f" by {abs(value - target.bound):.3f}"
    return {
        "study": target.study, "claim": f"{target.arm} against {against}, {target.metric}: {aim}"
        + (f" in {target.wins} seeds" if target.wins else ""),
        "value": shown.format(value) + spread + f", better in {wins} of {len(content['seeds'])}",
        "met": "met" if met else f"missed{missed}",
    }  # fmt: skip


def _parity_row(parity: Parity, content: Mapping[str, Any]) -> dict[str, Any]:
    """What should make no difference, or no harm, what came out, and whether that holds."""
    arm, against, metric = parity.arm, parity.against, parity.metric
    difference, sd, wins = paired(content, arm, against, metric)
    p, aim = _p_value(content, arm, against, metric), "not worse" if parity.may_win else "no effect"
    alike = p is None or not p < 0.05
    return {
        "study": parity.study, "claim": f"{arm} against {against}, {metric}: {aim}, at 5 %",
        "value": f"{difference:+.3f} ± {sd:.3f}, better in {wins} of {len(content['seeds'])}",
        "holds": alike or (parity.may_win and _better(content, arm, against, metric)),
    }  # fmt: skip


def main() -> None:
    """Command line."""
    from evidence_studies import PARITIES, STUDIES, TARGETS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "page"])
    parser.add_argument("names", nargs="*", metavar="STUDY", help=f"by default all: {', '.join(STUDIES)}")
    parser.add_argument("--output", type=Path, default=Path("runs/evidence"))
    parser.add_argument("--workers", type=int)
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in STUDIES]
    if unknown:
        parser.error(f"unknown study {unknown[0]}; there are: {', '.join(STUDIES)}")
    console = Console()
    if options.what == "run":
        for name in options.names or STUDIES:
            console.print(f"[bold]{name}")
            run(name, STUDIES[name], options.output, options.workers, console)
    PAGE.write_text(page(STUDIES, TARGETS, PARITIES))
    console.print(f"{PAGE}")


if __name__ == "__main__":
    main()
