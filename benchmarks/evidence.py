"""The studies of docs/evidence.md, and the page itself.

    python benchmarks/evidence.py run                      # all studies; an interrupted run continues
    python benchmarks/evidence.py run plane_unreliable     # one study
    python benchmarks/evidence.py check [STUDY]            # one row of each table made anew, and how far it is from the table
    python benchmarks/evidence.py page                     # docs/evidence.md from docs/results/*.json, in a second

A study is an `amd-plugin compare`: arms x seeds on one recipe, one folder per run under --output. Its numbers go to
docs/results/STUDY.json and STUDY.md. Studies of guidance add the distance to the teacher's own guided samples to the task's
metrics. All studies together take hours on two cores.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from evidence_studies import HARVESTS, PARITIES, STUDIES, TARGETS
from evidence_types import BEST_DMD, FOLLOWED, Parity, Study, Target
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from rich.console import Console
from safetensors.torch import load_file
from scipy.stats import ttest_rel

import amd_plugin
from amd_plugin import metrics
from amd_plugin.evaluate.comparison.arms import Arm, arms, parse_seeds
from amd_plugin.evaluate.comparison.compare import compare
from amd_plugin.evaluate.comparison.result import Comparison, run_folder
from amd_plugin.evaluate.comparison.tables import markdown, spread, time_to_quality
from amd_plugin.evaluate.directions import ARROWS, Direction
from amd_plugin.host.run import train
from amd_plugin.models.backbone import load_backbone
from amd_plugin.models.teacher_samples import teacher_samples
from amd_plugin.plugins import PluginManager, get_plugin_manager
from amd_plugin.recipe.loading import load

ROOT = Path(__file__).parents[1]
RESULTS, PAGE = ROOT / "docs" / "results", ROOT / "docs" / "evidence.md"


def run(name: str, study: Study, output: Path, workers: int | None, console: Console) -> None:
    """Runs the missing runs of a study, and writes its numbers."""
    plugins = get_plugin_manager()
    study = started(name, study, output, plugins, console)
    config = load(study.recipe, plugins, study.settings).config
    chosen = arms(study.objectives, plugins, config.rewards, ablate=study.ablate, tune=study.tune, more=study.more)
    folder, seeds = output / name, parse_seeds(study.seeds)
    comparison = compare(study.recipe, chosen, seeds, study.settings, folder, plugins, workers=workers, console=console)
    comparison = replace(comparison, command=f"python benchmarks/evidence.py run {name}")
    if study.followed is not None:
        better: dict[str, Direction] = {**comparison.better, FOLLOWED: "down"}
        distances = {
            arm: [_to_teacher(study, study.followed, seed, run_folder(folder, arm, seed), plugins) for seed in seeds]
            for arm in comparison.arms
        }
        comparison = replace(
            comparison,
            better=better,
            arms={arm: {**values, FOLLOWED: distances[arm]} for arm, values in comparison.arms.items()},
            teacher={**comparison.teacher, FOLLOWED: [0.0] * len(seeds)},
        )
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(comparison.as_json() + "\n")
    (RESULTS / f"{name}.md").write_text(markdown(comparison))


def check(name: str, study: Study, output: Path, console: Console) -> dict[str, tuple[float, float]]:
    """Makes the table's first row, with its first seed, from nothing; returns metric -> (committed value, value now).

    On the machine that made the table both are equal to the bit. Others round differently, and training magnifies that.
    """
    plugins = get_plugin_manager()
    study = started(name, study, output, plugins, console)
    committed = Comparison.from_file(RESULTS / f"{name}.json")
    seed, arm = committed.seeds[0], Arm(committed.baseline, study.objectives[0], family=committed.baseline)
    made = compare(study.recipe, [arm], [seed], study.settings, output / name, plugins, workers=1, console=console)
    return {metric: (committed.arms[arm.name][metric][0], made.arms[arm.name][metric][0]) for metric in committed.held_out}


def started(name: str, study: Study, output: Path, plugins: PluginManager, console: Console) -> Study:
    """The study with the student that its arms start from, if it has one; its run is made where it is missing."""
    if study.start is None:
        return study
    folder = output.absolute() / f"{name}_start"
    train(load(study.recipe, plugins, study.start, study.objectives[0]), plugins, folder, resume="auto", console=console)
    return replace(study, settings=(*study.settings, f"model.student_from={folder / 'student'}"))


def _to_teacher(study: Study, scale: float, seed: int, run: Path, plugins: PluginManager) -> float:
    """Sliced Wasserstein distance, mean over classes, of a run's last samples to its teacher's samples at guidance `scale`."""
    recipe = load(study.recipe, plugins, study.settings)
    backbone = load_backbone(recipe.config.model, recipe.task, seed, plugins.families())
    latest = load_file(run / "samples" / "latest.safetensors")
    samples, labels = latest["samples"], latest["labels"]
    guided, guided_labels = teacher_samples(backbone, recipe.config.model, recipe.task, seed, len(samples), scale)
    classes = torch.unique(guided_labels).tolist()
    by_class = [(samples[labels == c], guided[guided_labels == c]) for c in classes]
    return statistics.fmean(metrics.sliced_wasserstein(a, b) for a, b in by_class)


def page(studies: Mapping[str, Study], targets: Sequence[Target], parities: Sequence[Parity]) -> str:
    """The evidence page, from committed numbers only."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, keep_trailing_newline=True
    )
    comparisons = {name: Comparison.from_file(path) for name in studies if (path := RESULTS / f"{name}.json").is_file()}
    template = environment.get_template("evidence.md.j2")
    return template.render(
        sections=[_section(name, studies[name], comparison) for name, comparison in comparisons.items()],
        targets=[_target_row(target, comparisons[target.study]) for target in targets if target.study in comparisons],
        everywhere=[_parity_row(parity, comparisons[parity.study]) for parity in parities if parity.study in comparisons],
        harvests=[_parity_row(parity, comparisons[parity.study]) for parity in HARVESTS if parity.study in comparisons],
        missing=[name for name in studies if name not in comparisons],
    )


def _section(name: str, study: Study, comparison: Comparison) -> dict[str, Any]:
    """A study's table: every arm's values, its comparison with the best-tuned DMD, and its cost."""
    columns = [m for m in dict.fromkeys((*comparison.held_out, "diversity", FOLLOWED)) if m in comparison.better]
    best = {metric: comparison.best_tuned(metric) for metric in columns}
    significant = significant_differences(comparison, best)
    costs = _relative_costs(comparison)
    rows = []
    for arm, values in comparison.arms.items():
        cells = []
        for metric in columns:
            text = spread(values[metric])
            if arm != best[metric]:
                text += f" ({comparison.paired(arm, best[metric], metric).wins})"
            mark = {"better": "**", "worse": "*", "": ""}[significant.get((arm, metric), "")]
            cells.append(f"{mark}{text}{mark}")
        rows.append({"name": arm, "cells": cells, "cost": costs.get(arm, "-")})
    return {
        "name": name, "study": study, "seeds": comparison.seeds,
        "metrics": [f"{metric} {ARROWS[comparison.better[metric]]}" for metric in columns],
        "rows": rows, "best": ", ".join(f"{m}: {arm}" for m, arm in best.items()), "command": comparison.command,
        "commits": comparison.commits,
        "time": "\n".join(time_to_quality(comparison)),
        "teacher": [f"{statistics.fmean(comparison.teacher[m]):.3f}" for m in columns],
    }  # fmt: skip


def _relative_costs(comparison: Comparison) -> dict[str, str]:
    """Arm -> mean processor time over that of the baseline, for the arms with known times."""
    seconds_of = {arm: [s for s in seconds if s is not None] for arm, seconds in comparison.seconds.items()}
    means = {arm: statistics.fmean(seconds) for arm, seconds in seconds_of.items() if seconds}
    base = means.get(comparison.baseline)
    return {arm: f"{mean / base:.2f}" for arm, mean in means.items()} if base else {}


def significant_differences(comparison: Comparison, best: Mapping[str, str]) -> dict[tuple[str, str], str]:
    """(arm, metric) -> ``better`` or ``worse`` than the best-tuned DMD, at 5 % over all arms of the metric (Holm, 1979).

    Args:
        comparison: comparison with DMD as its baseline.
        best: metric -> arm of the best-tuned DMD.
    """
    significant = {}
    for metric, against in best.items():
        others = [arm for arm in comparison.arms if arm != against and not arm.startswith("dmd@") and arm != "dmd"]
        tests = {arm: p for arm in others if (p := _p_value(comparison, arm, against, metric)) is not None}
        for rank, arm in enumerate(sorted(tests, key=tests.__getitem__)):
            if not tests[arm] * (len(tests) - rank) < 0.05:
                break
            significant[arm, metric] = "better" if _better(comparison, arm, against, metric) else "worse"
    return significant


def _p_value(comparison: Comparison, arm: str, against: str, metric: str) -> float | None:
    """p-value of a paired t-test over seeds; None for a single seed, or arms that are equal in every seed."""
    a, b = (comparison.badness_per_seed(name, metric) for name in (arm, against))
    return float(ttest_rel(a, b).pvalue) if len(a) > 1 and a != b else None


def _better(comparison: Comparison, arm: str, against: str, metric: str) -> bool:
    """Whether `arm` is better than `against` in the mean over seeds."""
    a, b = (statistics.fmean(comparison.badness_per_seed(name, metric)) for name in (arm, against))
    return a < b


def _target_row(target: Target, comparison: Comparison) -> dict[str, str]:
    """A target, the measured value, and whether the target is met."""
    metric = target.metric
    against = comparison.best_tuned(metric) if target.against == BEST_DMD else target.against
    paired, mean = comparison.paired(target.arm, against, metric), comparison.mean(target.arm, metric)
    up = comparison.better[metric] == "up"
    if target.bound_of == "ratio":
        value, aim, shown = mean / comparison.mean(against, metric), f"at most {target.bound:g} x", "{:.2f} x"
    elif target.bound_of == "value":
        value, aim, shown = mean, f"{'at least' if up else 'at most'} {target.bound:g}", "{:.3f}"
    else:
        value, aim, shown = paired.mean, f"{'at least' if up else 'at most'} {target.bound:+g}", "{:+.3f}"
    reached = value >= target.bound if up and target.bound_of != "ratio" else value <= target.bound
    deviation = f" ± {paired.deviation:.3f}" if target.bound_of == "difference" else ""
    met = reached and paired.wins >= target.wins
    missed = "" if reached else f" by {abs(value - target.bound):.3f}"
    return {
        "study": target.study, "claim": f"{target.arm} against {against}, {metric}: {aim}"
        + (f" in {target.wins} seeds" if target.wins else ""),
        "value": shown.format(value) + deviation + f", better in {paired.wins} of {len(comparison.seeds)}",
        "met": "met" if met else f"missed{missed}",
    }  # fmt: skip


def _parity_row(parity: Parity, comparison: Comparison) -> dict[str, Any]:
    """A parity, the measured difference, and whether the parity holds."""
    arm, against, metric = parity.arm, parity.against, parity.metric
    paired, p = comparison.paired(arm, against, metric), _p_value(comparison, arm, against, metric)
    aim = "not worse" if parity.may_win else "no effect"
    equal = p is None or not p < 0.05
    return {
        "study": parity.study, "claim": f"{arm} against {against}, {metric}: {aim}, at 5 %",
        "value": f"{paired.mean:+.3f} ± {paired.deviation:.3f}, better in {paired.wins} of {len(comparison.seeds)}",
        "holds": equal or (parity.may_win and _better(comparison, arm, against, metric)),
    }  # fmt: skip


def _check_all(names: Sequence[str], console: Console) -> bool:
    """Prints how far the committed tables are from what their commands give now; returns whether all are equal."""
    equal = True
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            values = check(name, STUDIES[name], Path(folder), console)
        equal &= all(was == now for was, now in values.values())
        console.print(f"[bold]{name}: " + ", ".join(f"{m} {was:.4f} -> {now:.4f}" for m, (was, now) in values.items()))
    return equal


def main() -> None:
    """Runs studies and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = {"run": "run studies and write the page", "check": "make a row of each table anew", "page": "only write the page"}
    parser.add_argument("action", choices=actions, help="; ".join(f"{name}: {does}" for name, does in actions.items()))
    parser.add_argument("names", nargs="*", metavar="STUDY", help=f"studies to run [default: all of {', '.join(STUDIES)}]")
    parser.add_argument("--output", type=Path, default=Path("runs/evidence"), help="folder of the runs")
    parser.add_argument("--workers", type=int, help="number of worker processes [default: one per core]")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in STUDIES]
    if unknown:
        parser.error(f"unknown study {unknown[0]}; there are: {', '.join(STUDIES)}")
    if (source := Path(amd_plugin.__file__).parents[1]) != ROOT:
        parser.error(f"amd_plugin is imported from {source}, whose numbers these would be. Set PYTHONPATH={ROOT}")
    console = Console()
    if options.action == "check":
        sys.exit(not _check_all(options.names or [name for name in STUDIES if (RESULTS / f"{name}.json").is_file()], console))
    if options.action == "run":
        for name in options.names or STUDIES:
            console.print(f"[bold]{name}")
            run(name, STUDIES[name], options.output, options.workers, console)
    PAGE.write_text(page(STUDIES, TARGETS, PARITIES))
    console.print(f"{PAGE}")


if __name__ == "__main__":
    main()
