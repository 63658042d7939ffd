"""Draws docs/images/tradeoffs.svg: quality against diversity over the strengths of each method, from docs/results.

    python docs/draw_tradeoffs.py [FOLDER]     # docs/images unless given

A point is an arm's mean over seeds, its cross one standard deviation. The number at a point is the strength.
"""

import sys
from pathlib import Path
from statistics import fmean, stdev

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from amd_plugin.evaluate.comparison.result import Comparison

ROOT = Path(__file__).parent
# Study -> (metric across, metric upwards, value that the latter should have; None where more is better).
PANELS: dict[str, tuple[str, str, float | None]] = {
    "plane_advantage": ("precision", "diversity", 1.0),
    "digits_advantage": ("accuracy", "recall", None),
}
# Method -> (colour, arms by strength).
CURVES = {
    "DMD, guidance scale": ("#555555", {"1": "dmd@1", "1.25": "dmd", "1.4": "dmd@1.4", "1.6": "dmd@1.6"}),
    "advantage guidance, gamma": (
        "#0072B2",
        {"0.5": "guided_0.5", "1": "guided_1", "2": "guided_2", "4": "guided_4", "8": "guided_8", "auto": "guided_auto"},
    ),
    "AMD's sharpening": (
        "#D55E00",
        {"1": "amd_sharpening_1", "amd": "amd", "4": "amd_sharpening_4", "amd, auto": "amd_auto"},
    ),
    "the paper's form": ("#009E73", {"": "amd_paper"}),
    "reward gradient": ("#CC79A7", {"": "dmd_reward_gradient"}),
}
MOST = 1.7  # arms with more diversity than this are left out of the plane's panel: all of them err most


def draw(folder: Path) -> Path:
    """Writes tradeoffs.svg to `folder`."""
    matplotlib.rcParams |= {"svg.hashsalt": "tradeoffs", "svg.fonttype": "none", "font.size": 8}
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, (study, (across, upwards, right)) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
        panel(axes, Comparison.from_file(ROOT / "results" / f"{study}.json"), across, upwards)
        if right is not None:
            axes.axhline(right, color="0.8", linewidth=1, zorder=0)
        axes.set(xlabel=f"{across}, held out", ylabel=upwards if right is None else f"{upwards} (1 is right)", title=study)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(CURVES), frameon=False)
    path = folder / "tradeoffs.svg"
    figure.savefig(path, metadata={"Date": None, "Creator": None})
    return path


def panel(axes: Axes, found: Comparison, across: str, upwards: str) -> None:
    """Draws the arms that a study has."""
    for name, (colour, arms) in CURVES.items():
        there = {strength: found.arms[arm] for strength, arm in arms.items() if arm in found.arms}
        there = {strength: arm for strength, arm in there.items() if fmean(arm[upwards]) <= MOST}
        if not there:
            continue
        x, y = ([fmean(arm[metric]) for arm in there.values()] for metric in (across, upwards))
        spread_x, spread_y = ([stdev(arm[metric]) for arm in there.values()] for metric in (across, upwards))
        fixed = [index for index, strength in enumerate(there) if not strength.endswith("auto")]
        if len(fixed) > 2:
            axes.plot([x[i] for i in fixed], [y[i] for i in fixed], color=colour, linewidth=1)
        axes.errorbar(x, y, spread_y, spread_x, color=colour, fmt="o", markersize=4, elinewidth=0.6, label=name)
        for strength, *place in zip(there, x, y, strict=True):
            axes.annotate(
                strength,
                place,
                xytext=(4, 4 if len(fixed) > 2 and "," not in strength else -9),
                textcoords="offset points",
                color=colour,
                fontsize=7,
            )


if __name__ == "__main__":
    print(draw(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "images"))
