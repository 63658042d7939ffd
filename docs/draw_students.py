"""Draws docs/images/students.png: eight prompts, each with one noise through a teacher in many steps and its students.

    python docs/draw_students.py --runs FOLDER      # of the study `scenes_continued`, see benchmarks/evidence.py

A frame is green where the held-out judge finds what the prompt asks for, and red elsewhere. The shares at the left are means
over all seeds of the comparison, of 1,440 samples each; the pictures are of its first seed. The file says the shares in words,
as its description; a test holds them, and the words of the pages that show it, against docs/results/scenes_continued.json.
"""

import argparse
import base64
import io
import textwrap
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from PIL import Image

from amd_plugin import get_plugin_manager
from amd_plugin.evaluate.comparison.result import FILE, Comparison, run_folder
from amd_plugin.evaluate.report.judged import judged
from amd_plugin.host.running.run_description import saved_config
from amd_plugin.tasks.scenes.sprites import ATTRIBUTION

ARMS = {"DMD": "dmd", "AMD": "amd"}  # DMD as the recipe has it: its guidance is not tuned
GREEN, RED = "#2f9e44", "#e03131"


def shares(found: Comparison) -> dict[str, float]:
    """Whose samples -> the share of them that is right, mean over seeds: the teacher's, then those of `ARMS`."""
    means = {"teacher": fmean(found.teacher["score"])}
    return means | {title: fmean(found.arms[arm]["score"]) for title, arm in ARMS.items()}


def in_words(right: Mapping[str, float]) -> str:
    """What `shares` gives, as text: ``teacher 49%, DMD 33%``."""
    return ", ".join(f"{title} {share:.0%}" for title, share in right.items())


def draw(shown: dict[str, Any], right: Mapping[str, float], output: Path) -> None:
    """Writes the picture.

    Args:
        shown: `columns` and `rows` as in `amd_plugin.evaluate.report.judged`.
        right: the share of samples that are right, in the order of the columns; see `shares`.
        output: PNG file.
    """
    matplotlib.rcParams.update({"font.family": "DejaVu Sans", "font.size": 9})
    columns, rows = shown["columns"], shown["rows"]
    figure = Figure(figsize=(0.95 * len(rows) + 1.4, 0.95 * len(columns) + 0.5), layout="constrained")
    grid = figure.subplots(len(columns), len(rows))
    for line, title, share in zip(grid, columns, right.values(), strict=True):
        for axis, row in zip(line, rows, strict=True):
            picture, fits = row["cells"][columns.index(title)]
            axis.imshow(Image.open(io.BytesIO(base64.b64decode(picture.partition(",")[2]))))
            axis.set(xticks=[], yticks=[])
            for spine in axis.spines.values():
                spine.set(color=GREEN if fits else RED, linewidth=2)
            if title == columns[0]:
                axis.set_title(textwrap.fill(row["prompt"], 15), fontsize=8)
        line[0].set_ylabel(f"{title}\n{share:.0%} right", rotation=0, ha="right", va="center", labelpad=6)
    figure.supxlabel(ATTRIBUTION, fontsize=6, color="0.4", x=0.99, ha="right")
    figure.savefig(output, dpi=110, metadata={"Description": in_words(right), "Copyright": ATTRIBUTION})


def main() -> None:
    """Draws the picture of a finished comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, required=True, help="folder of the comparison that is drawn")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "images" / "students.png", help="PNG file")
    given = parser.parse_args()
    found, plugins = Comparison.from_file(given.runs / FILE), get_plugin_manager()
    runs = {title: run_folder(given.runs, arm, found.seeds[0]) for title, arm in ARMS.items()}
    config = saved_config(runs["DMD"])
    shown = judged(
        config, {f"{title}, {config.model.student_steps} steps": run for title, run in runs.items()}, found.seeds[0], plugins
    )
    if shown is None:
        raise SystemExit(f"--runs {given.runs}: has no samples and checkpoints of the arms {', '.join(ARMS.values())}")
    draw(shown, shares(found), given.output)


if __name__ == "__main__":
    main()
