"""The report's charts with their numbers: learning curves, quality by reward, sample weights over time, paired seeds."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from amd_plugin.evaluate.colours import COLOURS
from amd_plugin.host.evaluation.pictures import as_written, drawable
from amd_plugin.maths.coherence import BANDS
from amd_plugin.maths.diagnostics import EDGES

SEED_LINES = "#8a8a8a"
# More is darker on the light page, and lighter on the dark one, which turns charts.
SHARES = "Blues"
PANELS = 4  # in a row, at most: more cannot be read
PANEL, COLUMNS, ROW = 2.7, 6, 0.2  # height of a panel in inches; columns of a legend, and the height of its rows in inches
ROWS = 30  # of a chart's numbers, at most

# Names in `amd_plugin.maths.diagnostics.weight_metrics` -> titles.
WEIGHTS = {"alpha": "alpha, weight of guidance", "beta": "beta, weight of matching", "guidance": "alpha / beta, effective"}

# Arm -> one list per seed of the lines in its metrics.jsonl.
Curves = Mapping[str, Sequence[Sequence[Mapping[str, float]]]]


class Chart(NamedTuple):
    """A chart, and what it shows in numbers.

    Attributes:
        picture: a data URI.
        head: titles of the columns.
        rows: cells of the rows, the first of which names the row; evenly chosen where there would be more than `ROWS`.
    """

    picture: str
    head: list[str]
    rows: list[list[str]]


def colours(arms: Sequence[str]) -> dict[str, str]:
    """Arm -> colour; the first arm, the baseline, is grey."""
    return {arm: COLOURS[index % len(COLOURS)] for index, arm in enumerate(arms)}


def inline(content: bytes, kind: str) -> str:
    """The bytes of a picture file as a data URI."""
    return f"data:image/{kind};base64," + base64.b64encode(content).decode()


def learning_curves(curves: Curves, metrics: Mapping[str, str], palette: Mapping[str, str]) -> Chart | None:
    """Mean over seeds of every metric against student updates, with a band of one standard deviation.

    A dotted line marks the first reward-hacking alarm of a run.

    Args:
        curves: arm -> one list per seed of the lines in its metrics.jsonl.
        metrics: key in those lines -> title.
        palette: arm -> colour, see `colours`.

    Returns:
        The chart, of the metrics that some arm has at two updates or more; None without any.
    """
    values = {key: {arm: _over_seeds(seeds, key) for arm, seeds in curves.items()} for key in metrics}
    shown = {key: title for key, title in metrics.items() if any(len(each.steps) > 1 for each in values[key].values())}
    if not shown:
        return None
    numbers: dict[str, dict[float, float]] = {}
    figure, grid = _panels(len(shown), len(curves))
    for axes, (key, title) in zip(grid, shown.items(), strict=True):
        for arm, seeds in curves.items():
            steps, mean, deviation = values[key][arm]
            axes.plot(steps, mean, color=palette[arm], label=arm, linewidth=1.6, marker="o" if len(steps) == 1 else None)
            axes.fill_between(steps, mean - deviation, mean + deviation, color=palette[arm], alpha=0.18, linewidth=0)
            numbers[_column(title, arm, curves)] = dict(zip(steps, mean, strict=True))
            for lines in seeds:
                alarms = [line["step"] for line in lines if line.get("hacking_alarm")]
                if alarms:
                    axes.axvline(alarms[0], color=palette[arm], linestyle=":", linewidth=1.2)
        axes.set_title(title, fontsize=10)
        _plain(axes)
        _updates(axes)
    _legend(figure)
    return _chart(figure, "student updates", numbers)


def quality_by_reward(
    curves: Curves, rewards: Mapping[str, str], metrics: Mapping[str, str], palette: Mapping[str, str]
) -> Chart | None:
    """Every held-out metric against every training reward: a path through the evaluations, with a dot at its end.

    A reward is a sensor of quality. Where a path turns, the reward still rises and quality no longer does.

    Args:
        curves: arm -> one list per seed of the lines in its metrics.jsonl.
        rewards: key in those lines of a reward of the evaluation's samples -> title.
        metrics: key in those lines of a held-out metric -> title.
        palette: arm -> colour, see `colours`.

    Returns:
        The chart; None where no run has two evaluations with both.
    """
    paths = {
        (reward, metric, arm): (_over_seeds(seeds, reward), _over_seeds(seeds, metric))
        for reward in rewards for metric in metrics for arm, seeds in curves.items()
    }  # fmt: skip
    shown = {place: (x, y) for place, (x, y) in paths.items() if len(x.steps) > 1 and x.steps == y.steps}
    if not shown:
        return None
    figure, grid = _panels(len(rewards) * len(metrics), len(curves), columns=min(PANELS, len(metrics)))
    panels = dict(zip(((reward, metric) for reward in rewards for metric in metrics), grid, strict=True))
    for (reward, metric, arm), (x, y) in shown.items():
        panels[reward, metric].plot(x.mean, y.mean, color=palette[arm], label=arm, linewidth=1.6, marker="o", markevery=[-1])
    for (reward, metric), axes in panels.items():
        axes.set_title(metrics[metric], fontsize=10)
        axes.set_xlabel(rewards[reward], fontsize=8)
        axes.locator_params("x", nbins=4)
        _plain(axes)
    _legend(figure)
    titles = {**rewards, **metrics}
    numbers = {_column(titles[key], arm, curves): dict(zip(part.steps, part.mean, strict=True))
               for (*keys, arm), parts in shown.items() for key, part in zip(keys, parts, strict=True)}  # fmt: skip
    return _chart(figure, "student updates", numbers)


def weights_over_time(curves: Curves) -> Chart | None:
    """Histograms over samples of alpha, beta and their ratio against student updates, mean over seeds.

    Args:
        curves: arm -> one list per seed of the lines in its metrics.jsonl. Arms without adaptation are left out.

    Returns:
        The chart, one row per arm; None where no arm has adaptation.
    """
    keys = {key for weight in WEIGHTS for key in _share_keys(weight)}
    logged = {arm: [[line for line in lines if keys <= line.keys()] for lines in seeds] for arm, seeds in curves.items()}
    adapting = {arm: seeds for arm, seeds in logged.items() if min(map(len, seeds)) > 1}
    if not adapting:
        return None
    figure = Figure(figsize=(9, 0.6 + 2.2 * len(adapting)), layout="constrained")
    grid = figure.subplots(len(adapting), len(WEIGHTS), squeeze=False)
    numbers: dict[str, dict[float, float]] = {}
    for row, (arm, seeds) in zip(grid, adapting.items(), strict=True):
        length = min(map(len, seeds))
        steps = [line["step"] for line in seeds[0][:length]]
        for axes, (weight, title) in zip(row, WEIGHTS.items(), strict=True):
            shares = np.array([[[line[key] for key in _share_keys(weight)] for line in lines[:length]] for lines in seeds])
            mean = np.clip(shares, 0, 1).mean(0).T  # another program's line may hold what is no share
            shown = axes.pcolormesh(
                steps, range(len(EDGES)), mean, vmin=0, vmax=1, cmap=SHARES, shading="nearest", rasterized=True
            )
            numbers |= {
                f"{arm}: {weight} {edge:g} +": dict(zip(steps, row, strict=True)) for edge, row in zip(EDGES, mean, strict=True)
            }
            axes.set_yticks(range(len(EDGES)), [f"{edge:g} +" for edge in EDGES], fontsize=7)
            axes.set_title(f"{arm}: {title}", fontsize=9)
            _updates(axes)
    figure.colorbar(shown, ax=grid, shrink=0.8, label="share of samples")
    return _chart(figure, "student updates", numbers)


def zone_over_time(curves: Curves) -> Chart | None:
    """The share of samples in the zone against student updates, by noise level or, for several steps, by rung; mean over seeds.

    Args:
        curves: arm -> one list per seed of the lines in its metrics.jsonl. Arms without these shares are left out.

    Returns:
        The chart, one panel per arm; None without such arms.
    """
    logged = {arm: _zone_shares(seeds) for arm, seeds in curves.items()}
    shown = {arm: (steps, levels) for arm, (steps, levels) in logged.items() if len(steps) > 1 and levels}
    if not shown:
        return None
    figure = Figure(figsize=(max(7, 3.6 * len(shown)), 2.6), layout="constrained")
    largest = max(float(np.nanmax(np.array([*levels.values()]))) for _, levels in shown.values()) or 1.0
    for axes, (arm, (steps, levels)) in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown.items(), strict=True):
        image = axes.pcolormesh(
            steps,
            range(len(levels)),
            [*levels.values()],
            vmin=0,
            vmax=largest,
            cmap=SHARES,
            shading="nearest",
            rasterized=True,
        )
        axes.set_yticks(range(len(levels)), [*levels], fontsize=8)
        axes.set_title(arm, fontsize=9, loc="left")
        axes.tick_params(labelsize=8)
        _updates(axes)
        if set(levels) & set(BANDS):
            axes.set_ylabel("noise level", fontsize=8)
    figure.colorbar(image, ax=figure.axes, shrink=0.9).set_label("share in the zone", fontsize=8)
    numbers = {f"{arm}: {level}": dict(zip(steps, shares, strict=True)) for arm, (steps, levels) in shown.items()
               for level, shares in levels.items()}  # fmt: skip
    return _chart(figure, "student updates", numbers)


def _zone_shares(seeds: Sequence[Sequence[Mapping[str, float]]]) -> tuple[list[float], dict[str, list[float]]]:
    """Steps that all seeds logged, and level -> mean share per step; NaN where no seed had samples of the level."""
    prefix = "objective/zone_share/"
    names = dict.fromkeys(
        key.removeprefix(prefix) for lines in seeds for line in lines for key in line if key.startswith(prefix)
    )
    order = [name for name in (*BANDS, *sorted(set(names) - set(BANDS))) if name in names]
    by_step = [{line["step"]: line for line in lines if any(prefix + name in line for name in names)} for lines in seeds]
    steps = sorted(set.intersection(*map(set, by_step))) if by_step else []
    levels = {}
    for name in order:
        values = [[line[step].get(prefix + name) for line in by_step] for step in steps]
        known = [[value for value in step if value is not None and 0 <= value <= 1] for step in values]
        levels[name] = [float(np.mean(step)) if step else float("nan") for step in known]
    return steps, {name: shares for name, shares in levels.items() if not np.isnan(shares).all()}


def paired_seeds(
    arms: Mapping[str, Mapping[str, Sequence[float]]], metrics: Mapping[str, str], palette: Mapping[str, str]
) -> Chart:
    """One line per seed across the arms, for every metric: the effect of the objective with the same teacher and noise.

    Args:
        arms: arm -> metric -> one value per seed.
        metrics: metric -> title.
        palette: arm -> colour, see `colours`.

    Returns:
        The chart; its seeds are numbered from 1.
    """
    figure, grid = _panels(len(metrics), 0, width=2.6, least=0)
    for axes, (metric, title) in zip(grid, metrics.items(), strict=True):
        values = drawable(np.array([arms[arm][metric] for arm in arms], dtype=float))
        axes.plot(range(len(arms)), values, color=SEED_LINES, linewidth=0.9, zorder=1)
        for index, arm in enumerate(arms):
            axes.scatter([index] * values.shape[1], values[index], color=palette[arm], s=16, zorder=2)
            axes.hlines(values[index].mean(), index - 0.25, index + 0.25, color=palette[arm], linewidth=2.5, zorder=3)
        axes.set_xticks(range(len(arms)), [arm.replace("_", "\n", 1) for arm in arms], fontsize=8)
        axes.set_xlim(-0.5, len(arms) - 0.5)
        axes.set_title(title, fontsize=10)
        _plain(axes)
    numbers = {
        f"{title}, {arm}": {1.0 + seed: value for seed, value in enumerate(values[metric])}
        for metric, title in metrics.items()
        for arm, values in arms.items()
    }
    return _chart(figure, "seed", numbers)


def _panels(
    count: int, labels: int, *, columns: int | None = None, width: float = 3.0, least: float = 7.0
) -> tuple[Figure, list[Axes]]:  # fmt: skip
    """A figure of `count` panels and its panels, each `width` inches wide, with room for a legend of `labels` below them.

    The figure is at least `least` inches wide. Its margins are given, since matplotlib draws every panel twice more where it
    has to find them: a third of a report's time.
    """
    columns = columns or min(PANELS, count)
    rows = -(-count // columns)
    below = ROW * -(-labels // COLUMNS)
    across, down = max(width * columns, least), PANEL * rows + below
    figure = Figure(figsize=(across, down))
    grid = list(figure.subplots(rows, columns, squeeze=False).flatten())
    wide, high = (across - 0.75) / columns - 0.6, PANEL - 0.9  # of the part of a panel that is drawn in
    figure.subplots_adjust(
        left=0.6 / across, right=1 - 0.15 / across, wspace=0.6 / wide,
        bottom=(below + 0.55) / down, top=1 - 0.35 / down, hspace=0.9 / high,
    )  # fmt: skip
    for unused in grid[count:]:
        unused.set_axis_off()
    return figure, grid[:count]


def _share_keys(weight: str) -> list[str]:
    return [f"objective/{weight}_share/{edge:.2f}" for edge in EDGES]


class _OverSeeds(NamedTuple):
    """Mean and standard deviation over seeds, each [len(steps)], at steps that all have; NaN where one cannot be drawn."""

    steps: list[float]
    mean: np.ndarray
    deviation: np.ndarray


def _over_seeds(seeds: Iterable[Sequence[Mapping[str, float]]], key: str) -> _OverSeeds:
    logged = [points for lines in seeds if (points := [(line["step"], line[key]) for line in lines if key in line])]
    length = min(map(len, logged), default=0)
    values = np.array([[value for _, value in points[:length]] for points in logged], dtype=float).reshape(len(logged), length)
    values = drawable(values)  # the implied tilt is infinite where a weight is 0
    deviation = values.std(0, ddof=1) if len(values) > 1 else np.zeros(length)
    mean = values.mean(0) if len(values) else np.zeros(0)
    return _OverSeeds([step for step, _ in logged[0][:length]] if logged else [], mean, deviation)


def _column(title: str, arm: str, curves: Curves) -> str:
    return f"{title}, {arm}" if len(curves) > 1 else title


def _legend(figure: Figure) -> None:
    """Below the panels and at the left, which is what a phone shows of a figure before anybody scrolls."""
    handles = {label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend([*handles.values()], [*handles], loc="lower left", ncols=COLUMNS, fontsize=8, frameon=False)


def _updates(axes: Axes) -> None:
    axes.locator_params("x", integer=True)  # nobody updates a student two and a half times
    axes.set_xlabel("student updates", fontsize=8)


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    axes.grid(axis="y", color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)


def _chart(figure: Figure, rows: str, numbers: Mapping[str, Mapping[float, float]]) -> Chart:
    """The figure as vectors, whose light ground the page turns dark where the reader's screen is; and `numbers` by column."""
    buffer = io.BytesIO()
    with rc_context({"svg.hashsalt": "amd-plugin"}):  # equal figures are equal files
        as_written(figure).savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    names = sorted({name for column in numbers.values() for name in column})
    places = np.linspace(0, len(names) - 1, min(len(names), ROWS)).round().astype(int)
    columns = numbers.values()
    cells = [[f"{name:g}", *(f"{c[name]:.4g}" if name in c else "" for c in columns)] for name in (names[p] for p in places)]
    return Chart(inline(buffer.getvalue(), "svg+xml"), [rows, *numbers], cells)
