"""The report's pictures: samples side by side, learning curves with their spread, sample weights over time, paired seeds."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from amd_plugin.host.evaluation.pictures import frames_of, picture
from amd_plugin.maths.coherence import BANDS
from amd_plugin.maths.diagnostics import EDGES
from amd_plugin.tasks import Task

# Okabe and Ito's colours, which colour-blind readers can distinguish, the light ones darker: a line has a contrast of 3 to
# the page in both themes. An arm has the same colour in all pictures.
COLOURS = ["#555555", "#D55E00", "#0072B2", "#008F68", "#C46B9D", "#A87400", "#2F8FC8", "#000000"]
SEED_LINES = "#8a8a8a"

# Names in `amd_plugin.maths.diagnostics.weight_metrics` -> titles.
WEIGHTS = {"alpha": "alpha, weight of guidance", "beta": "beta, weight of matching", "guidance": "alpha / beta, effective"}

# Arm -> one list per seed of the lines in its metrics.jsonl.
Curves = Mapping[str, Sequence[Sequence[Mapping[str, float]]]]


def colours(arms: Sequence[str]) -> dict[str, str]:
    """Arm -> colour; the first arm, the baseline, is grey."""
    return {arm: COLOURS[index % len(COLOURS)] for index, arm in enumerate(arms)}


def sample_panels(task: Task, panels: Mapping[str, tuple[Tensor, Tensor]]) -> str:
    """Panels title -> (media, labels) in a row, as an inline PNG, or an inline GIF for videos."""
    still = all(frames_of(media) == 1 for media, _ in panels.values())
    content, kind = picture(task, panels, dpi=150 if still else 110)
    return inline(content, kind)


def inline(content: bytes, kind: str) -> str:
    """The bytes of a picture file as a data URI."""
    return f"data:image/{kind};base64," + base64.b64encode(content).decode()


def learning_curves(curves: Curves, metrics: Mapping[str, str], palette: Mapping[str, str]) -> str | None:
    """Mean over seeds of every metric against student updates, with a band of one standard deviation.

    A dotted line marks the first reward-hacking alarm of a run.

    Args:
        curves: arm -> one list per seed of the lines in its metrics.jsonl.
        metrics: key in those lines -> title.
        palette: arm -> colour, see `colours`.

    Returns:
        The picture as a data URI; None without metrics.
    """
    if not metrics:
        return None
    columns = min(4, len(metrics))
    rows = -(-len(metrics) // columns)
    figure = Figure(figsize=(max(3.0 * columns, 7), 2.8 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, (key, title) in zip(grid, metrics.items(), strict=False):
        for arm, seeds in curves.items():
            _band(axes, [[(line["step"], line[key]) for line in lines if key in line] for lines in seeds], arm, palette[arm])
            for lines in seeds:
                alarms = [line["step"] for line in lines if line.get("hacking_alarm")]
                if alarms:
                    axes.axvline(alarms[0], color=palette[arm], linestyle=":", linewidth=1.2)
        axes.set_title(title, fontsize=10)
        _plain(axes)
        axes.set_xlabel("student updates", fontsize=8)
    for axes in grid[len(metrics) :]:
        axes.axis("off")
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(6, len(labels)), fontsize=8, frameon=False)
    return _inline(figure)


def weights_over_time(curves: Curves) -> str | None:
    """Histograms over samples of alpha, beta and their ratio against student updates, mean over seeds.

    Args:
        curves: arm -> one list per seed of the lines in its metrics.jsonl. Arms without adaptation are left out.

    Returns:
        The picture as a data URI, one row per arm; None where no arm has adaptation.
    """
    logged = {
        arm: [[line for line in lines if _share_keys("alpha")[0] in line] for lines in seeds] for arm, seeds in curves.items()
    }
    adapting = {arm: seeds for arm, seeds in logged.items() if min(map(len, seeds)) > 1}
    if not adapting:
        return None
    figure = Figure(figsize=(9, 0.6 + 2.2 * len(adapting)), layout="constrained")
    grid = figure.subplots(len(adapting), len(WEIGHTS), squeeze=False)
    for row, (arm, seeds) in zip(grid, adapting.items(), strict=True):
        length = min(map(len, seeds))
        steps = [line["step"] for line in seeds[0][:length]]
        for axes, (weight, title) in zip(row, WEIGHTS.items(), strict=True):
            shares = np.array([[[line[key] for key in _share_keys(weight)] for line in lines[:length]] for lines in seeds])
            shown = axes.pcolormesh(
                steps, range(len(EDGES)), shares.mean(0).T, vmin=0, vmax=1, cmap="cividis", shading="nearest", rasterized=True
            )
            axes.set_yticks(range(len(EDGES)), [f"{edge:g} +" for edge in EDGES], fontsize=7)
            axes.set_title(f"{arm}: {title}", fontsize=9)
            axes.set_xlabel("student updates", fontsize=8)
    figure.colorbar(shown, ax=grid, shrink=0.8, label="share of samples")
    return _inline(figure)


def zone_over_time(curves: Curves) -> str | None:
    """The share of samples in the zone against student updates, by noise level or, for several steps, by rung; mean over seeds.

    Args:
        curves: arm -> one list per seed of the lines in its metrics.jsonl. Arms without these shares are left out.

    Returns:
        The picture as a data URI, one panel per arm; None without such arms.
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
            cmap="cividis",
            shading="nearest",
            rasterized=True,
        )
        axes.set_yticks(range(len(levels)), [*levels], fontsize=8)
        axes.set_title(arm, fontsize=9)
        axes.set_xlabel("student updates", fontsize=8)
    figure.colorbar(image, ax=figure.axes, shrink=0.9, label="share in the zone")
    return _inline(figure)


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
        known = [[value for value in step if value is not None and np.isfinite(value)] for step in values]
        levels[name] = [float(np.mean(step)) if step else float("nan") for step in known]
    return steps, {name: shares for name, shares in levels.items() if not np.isnan(shares).all()}


def paired_seeds(
    arms: Mapping[str, Mapping[str, Sequence[float]]], metrics: Mapping[str, str], palette: Mapping[str, str]
) -> str:
    """One line per seed across the arms, for every metric: the effect of the objective with the same teacher and noise.

    Args:
        arms: arm -> metric -> one value per seed.
        metrics: metric -> title.
        palette: arm -> colour, see `colours`.

    Returns:
        The picture as a data URI.
    """
    figure = Figure(figsize=(2.6 * len(metrics), 2.8), layout="constrained")
    for axes, (metric, title) in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics.items(), strict=True):
        values = np.array([arms[arm][metric] for arm in arms])
        axes.plot(range(len(arms)), values, color=SEED_LINES, linewidth=0.9, zorder=1)
        for index, arm in enumerate(arms):
            axes.scatter([index] * values.shape[1], values[index], color=palette[arm], s=16, zorder=2)
            axes.hlines(values[index].mean(), index - 0.25, index + 0.25, color=palette[arm], linewidth=2.5, zorder=3)
        axes.set_xticks(range(len(arms)), [arm.replace("_", "\n", 1) for arm in arms], fontsize=8)
        axes.set_xlim(-0.5, len(arms) - 0.5)
        axes.set_title(title, fontsize=10)
        _plain(axes)
    return _inline(figure)


def _share_keys(weight: str) -> list[str]:
    return [f"objective/{weight}_share/{edge:.2f}" for edge in EDGES]


def _band(axes: Axes, seeds: Sequence[Sequence[tuple[float, float]]], label: str, colour: str) -> None:
    seeds = [points for points in seeds if points]
    if not seeds:
        return
    length = min(len(points) for points in seeds)
    x = [step for step, _ in seeds[0][:length]]
    y = np.array([[value for _, value in points[:length]] for points in seeds], dtype=float)
    y[~np.isfinite(y)] = np.nan  # the implied tilt is infinite where a weight is 0
    mean, sd = y.mean(0), y.std(0, ddof=1) if len(y) > 1 else np.zeros(length)
    axes.plot(x, mean, color=colour, label=label, linewidth=1.6, marker="o" if length == 1 else None)
    axes.fill_between(x, mean - sd, mean + sd, color=colour, alpha=0.18, linewidth=0)


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    axes.grid(axis="y", color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)


def _inline(figure: Figure) -> str:
    """The figure as vectors; the page turns its light ground dark where the reader's screen is."""
    buffer = io.BytesIO()
    with rc_context({"svg.hashsalt": "amd-plugin"}):  # equal figures are equal files
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    return inline(buffer.getvalue(), "svg+xml")
