"""A comparison in numbers: paired differences, the best tuning, tables for Markdown and terminals.

`content` is what `compare.json` holds: ``{"task", "recipe", "seeds", "arms": {arm: {metric: [one float per seed]}}, "baseline",
"better": {metric: "up" | "down" | "one"}, "teacher", "command"}``.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.table import Table


def paired(content: Mapping[str, Any], arm: str, against: str, metric: str) -> tuple[float, float, int]:
    """Mean and standard deviation over seeds of arm - against, and in how many seeds the arm is better."""
    better = content["better"][metric]
    pairs = list(zip(content["arms"][arm][metric], content["arms"][against][metric], strict=True))
    differences = [a - b for a, b in pairs]
    closer = {"up": lambda a, b: a > b, "down": lambda a, b: a < b, "one": lambda a, b: abs(a - 1) < abs(b - 1)}[better]
    return statistics.fmean(differences), deviation(differences), sum(closer(a, b) for a, b in pairs)


def best_tuned(content: Mapping[str, Any], metric: str) -> str:
    """The baseline arm, tuned or not, with the best mean of `metric`."""
    base, better = content["baseline"], content["better"][metric]
    family = [arm for arm in content["arms"] if arm == base or arm.startswith(f"{base}@")]
    return min(family, key=lambda arm: _badness(statistics.fmean(content["arms"][arm][metric]), better))


def best_overall(arms: Mapping[str, Mapping[str, Sequence[float]]], better: Mapping[str, str], metrics: Sequence[str]) -> str:
    """The arm with the best mean rank over `metrics`, each by its mean over seeds; the earlier one of two that tie."""
    ranks = dict.fromkeys(arms, 0)
    for metric in metrics:
        order = sorted(arms, key=lambda arm: _badness(statistics.fmean(arms[arm][metric]), better[metric]))
        for rank, arm in enumerate(order):
            ranks[arm] += rank
    return min(arms, key=lambda arm: ranks[arm])


def _badness(value: float, better: str) -> float:
    return {"up": -value, "down": value, "one": abs(value - 1)}[better]


def markdown(content: Mapping[str, Any]) -> str:
    """The comparison as Markdown: values, then differences to the baseline and to its best tuning."""
    arms, base, seeds = content["arms"], content["baseline"], content["seeds"]
    metrics = list(arms[base])
    arrow = {"up": "higher is better", "down": "lower is better", "one": "1 is right"}
    head = "| arm | " + " | ".join(metrics) + " |\n|---|" + "---|" * len(metrics)
    value = lambda values: f"{statistics.fmean(values):.3f} ± {deviation(values):.3f}"  # noqa: E731
    lines = [
        f"# {content['recipe']}: {len(seeds)} seeds, paired",
        "",
        f"`{content['command']}`",
        "",
        "Mean ± standard deviation over seeds; each seed has its own teacher, shared by all arms. "
        + ", ".join(f"{m}: {arrow[content['better'][m]]}" for m in metrics) + ".",
        "", head,
        "| *teacher, many steps* | " + " | ".join(value(content["teacher"][m]) for m in metrics) + " |",
        *(f"| {arm} | " + " | ".join(value(arms[arm][m]) for m in metrics) + " |" for arm in arms),
        "", f"Difference to {base}, in brackets the seeds that are better.", "", head,
    ]  # fmt: skip
    lines += [_difference_row(content, arm, metrics, lambda metric: base) for arm in arms if arm != base]
    if any(arm.startswith(f"{base}@") for arm in arms):
        best = {metric: best_tuned(content, metric) for metric in metrics}
        lines += ["", f"Difference to the {base} tuned best for each metric.", "", head]
        lines.append(f"| *best {base}* | " + " | ".join(best[metric] for metric in metrics) + " |")
        rest = [arm for arm in arms if arm != base and not arm.startswith(f"{base}@")]
        lines += [_difference_row(content, arm, metrics, best.__getitem__) for arm in rest]
    if content.get("selected"):
        against, chosen = selected(content)
        lines += ["", f"{how_selected(content)} Difference to {against}.", "", head]
        lines += [_difference_row(content, arm, metrics, lambda metric: against) for arm in chosen]
    for objective, options in content.get("unused", {}).items():
        lines += ["", f"`{objective}` has no option {', '.join(options)}; what the recipe says of it is for the other arms."]
    return "\n".join(lines) + "\n"


def selected(content: Mapping[str, Any]) -> tuple[str, list[str]]:
    """The baseline at the setting that was chosen for it on seeds of their own, and the chosen settings of the other arms."""
    base, chosen = content["baseline"], content["selected"]
    against = chosen.get(base, base)
    return against, [arm for arm in chosen.values() if arm != against]


def how_selected(content: Mapping[str, Any]) -> str:
    """How the chosen settings were found, in a sentence."""
    apart = ", ".join(map(str, content["select_seeds"]))
    how = f"best mean rank over {', '.join(content['held_out'])} on the seeds {apart}, which are not reported"
    return f"Every arm at the setting with the {how}."


def difference(content: Mapping[str, Any], arm: str, against: str, metric: str) -> str:
    """``+0.123 ± 0.045 (7/8)``: mean and deviation of arm - against over seeds, and in how many the arm is better."""
    mean, sd, wins = paired(content, arm, against, metric)
    return f"{mean:+.3f} ± {sd:.3f} ({wins}/{len(content['seeds'])})"


def _difference_row(content: Mapping[str, Any], arm: str, metrics: Iterable[str], against: Any) -> str:
    return f"| {arm} | " + " | ".join(difference(content, arm, against(metric), metric) for metric in metrics) + " |"


def terminal_table(content: Mapping[str, Any]) -> Table:
    """Means, and in how many seeds each arm is better than the baseline."""
    base = content["baseline"]
    table = Table(title=f"{content['recipe']}: mean over {len(content['seeds'])} seeds (seeds better than {base})")
    metrics = list(content["arms"][base])
    for column in ("arm", *metrics):
        table.add_column(column, justify="left" if column == "arm" else "right")
    for arm, values in content["arms"].items():
        cells = [f"{statistics.fmean(values[m]):.3f}" for m in metrics]
        if arm != base:
            cells = [
                f"{c} ({paired(content, arm, base, m)[2]}/{len(content['seeds'])})" for c, m in zip(cells, metrics, strict=True)
            ]
        table.add_row(arm, *cells)
    if content.get("selected"):
        against, chosen = selected(content)
        apart = ", ".join(map(str, content["select_seeds"]))
        table.caption = f"chosen on the seeds {apart}: {', '.join([against, *chosen])}"
    return table


def deviation(values: Sequence[float]) -> float:
    """Standard deviation over seeds; 0 for a single one."""
    return statistics.stdev(values) if len(values) > 1 else 0.0
