"""Tables of a comparison, for Markdown and for a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from rich.table import Table

from amd_plugin.evaluate.comparison.result import Comparison, deviation, mean
from amd_plugin.evaluate.comparison.time_to_quality import median_updates
from amd_plugin.evaluate.directions import WORDS


def markdown(comparison: Comparison) -> str:
    """Values of all arms, then differences to the baseline, to its best tuning and to its selected setting."""
    base, metrics = comparison.baseline, comparison.metrics
    head = "| arm | " + " | ".join(metrics) + " |\n|---|" + "---|" * len(metrics)
    lines = [
        f"# {comparison.recipe}: {counted(comparison.seeds)}, paired",
        "",
        f"`{comparison.command}`",
        "",
        "Mean ± standard deviation over seeds; "
        + ("each seed has its own teacher, shared by all arms. " if comparison.own_teachers else "all share one teacher. ")
        + ", ".join(f"{m}: {WORDS[comparison.better[m]]}" for m in metrics) + ".",
        "", head,
        "| *teacher, many steps* | " + " | ".join(spread(comparison.teacher[m]) for m in metrics) + " |",
        *(f"| {arm} | " + " | ".join(spread(values[m]) for m in metrics) + " |" for arm, values in comparison.arms.items()),
        "", f"Difference to {base}, in brackets the seeds that are better.", "", head,
    ]  # fmt: skip
    lines += [_difference_row(comparison, arm, metrics, lambda metric: base) for arm in comparison.arms if arm != base]
    tunings = comparison.tunings_of_baseline()
    if len(tunings) > 1:
        best = {metric: comparison.best_tuned(metric) for metric in metrics}
        lines += ["", f"Difference to the {base} tuned best for each metric.", "", head]
        lines.append(f"| *best {base}* | " + " | ".join(best[metric] for metric in metrics) + " |")
        rest = [arm for arm in comparison.arms if arm not in tunings]
        lines += [_difference_row(comparison, arm, metrics, best.__getitem__) for arm in rest]
    lines += time_to_quality(comparison)
    if comparison.selected:
        against, chosen = comparison.selected_arms()
        lines += ["", f"{how_selected(comparison)} Difference to {against}.", "", head]
        lines += [_difference_row(comparison, arm, metrics, lambda metric: against) for arm in chosen]
    for objective, options in comparison.unused.items():
        lines += ["", f"`{objective}` has no option {', '.join(options)}; the recipe's value is for the other arms."]
    return "\n".join(lines) + "\n"


def time_to_quality(comparison: Comparison) -> list[str]:
    """Lines of a table: updates until each arm is where the baseline ends; none where runs were not evaluated on the way."""
    if not comparison.updates:
        return []
    base, metrics = comparison.baseline, list(comparison.updates)
    lines = [
        "", f"Updates until an arm is as good as {base} at its end: median over seeds, in brackets the seeds that get there.",
        "", "| arm | " + " | ".join(metrics) + " |\n|---|" + "---|" * len(metrics),
    ]  # fmt: skip
    for arm in comparison.arms:
        lines.append(f"| {arm} | {' | '.join(updates_needed(comparison, arm, metric) for metric in metrics)} |")
    return lines


def updates_needed(comparison: Comparison, arm: str, metric: str) -> str:
    """``300 (3/4)``: median over seeds of the updates until `arm` is where the baseline ends, and in how many it gets there."""
    updates = comparison.updates[metric][arm]
    median, reached = median_updates(updates), sum(number is not None for number in updates)
    return f"{'never' if median is None else f'{median:.0f}'} ({reached}/{len(updates)})"


def how_selected(comparison: Comparison) -> str:
    """How the settings were selected, in a sentence."""
    apart = ", ".join(map(str, comparison.select_seeds))
    rule = f"best mean rank over {', '.join(comparison.held_out)} on the seeds {apart}, which are not reported"
    return f"Every arm at the setting with the {rule}."


def counted(seeds: Sequence[int]) -> str:
    """``1 seed``, ``4 seeds``."""
    return f"{len(seeds)} seed{'s' * (len(seeds) > 1)}"


def spread(values: Sequence[float], digits: int = 3) -> str:
    """``0.123 ± 0.045``: mean and standard deviation over seeds; one seed has no deviation."""
    around = f" ± {deviation(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{around}"


def difference(comparison: Comparison, arm: str, against: str, metric: str) -> str:
    """``+0.123 ± 0.045 (7/8)``: mean and deviation of arm - against over seeds, and in how many the arm is better."""
    paired = comparison.paired(arm, against, metric)
    count = len(comparison.seeds)
    around = f" ± {paired.deviation:.3f}" if count > 1 else ""
    return f"{paired.mean:+.3f}{around} ({paired.wins}/{count})"


def terminal_table(comparison: Comparison) -> Table:
    """Means, and in how many seeds each arm is better than the baseline."""
    base, count = comparison.baseline, len(comparison.seeds)
    table = Table(title=f"{comparison.recipe}: mean over {counted(comparison.seeds)} (seeds better than {base})")
    for column in ("arm", *comparison.metrics):
        table.add_column(column, justify="left" if column == "arm" else "right")
    for arm in comparison.arms:
        cells = []
        for metric in comparison.metrics:
            wins = "" if arm == base else f" ({comparison.paired(arm, base, metric).wins}/{count})"
            cells.append(f"{comparison.mean(arm, metric):.3f}{wins}")
        table.add_row(arm, *cells)
    if comparison.selected:
        against, chosen = comparison.selected_arms()
        apart = ", ".join(map(str, comparison.select_seeds))
        table.caption = f"chosen on the seeds {apart}: {', '.join([against, *chosen])}"
    return table


def _difference_row(comparison: Comparison, arm: str, metrics: Iterable[str], against: Callable[[str], str]) -> str:
    cells = (difference(comparison, arm, against(metric), metric) for metric in metrics)
    return f"| {arm} | {' | '.join(cells)} |"
