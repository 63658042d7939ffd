"""Draws docs/images/digits.png: the same noise and labels through a teacher in many steps and its students.

    python docs/draw_students.py                    # trains them in runs/picture first: some minutes
    python docs/draw_students.py --runs FOLDER      # a folder of runs that are there, or are finished there

A frame is green where the held-out judge reads the digit that was asked for, and red elsewhere. The shares at the left are of
the runs' own evaluation, of 2,000 samples. One seed; docs/evidence.md has several.
"""

import argparse
from pathlib import Path

import matplotlib
import torch
from accelerate import Accelerator
from matplotlib.figure import Figure
from torch import Tensor

from amd_plugin import get_plugin_manager
from amd_plugin.evaluate.comparison.arms import Arm
from amd_plugin.evaluate.comparison.compare import compare
from amd_plugin.evaluate.comparison.result import run_folder
from amd_plugin.evaluate.students.samples import Sampler, prepare, student_sampler, teacher_sampler
from amd_plugin.evaluate.students.suite import of_task
from amd_plugin.host.student.load import Student, load_student
from amd_plugin.randomness import generator

COLUMNS = 2  # samples per digit
# The guidance of the second is the one at which docs/results/digits_unreliable.md has DMD's smallest Frechet distance.
ARMS = {
    "DMD": Arm("dmd", "dmd"),
    "DMD, tuned": Arm("dmd_tuned", "dmd", ("objective.guidance_scale=1.4",)),
    "AMD": Arm("amd", "amd"),
}
GREEN, RED = "#2f9e44", "#e03131"


@torch.no_grad()
def row(student: Student, sampler: Sampler) -> tuple[Tensor, Tensor]:
    """Pictures [N, height, width] in [0, 1], `COLUMNS` of each digit of one noise, and whether each is right [N]."""
    backbone, labels = student.backbone, torch.arange(10).repeat_interleave(COLUMNS)
    draws = [generator(0, "picture", place) for place in range(len(labels))]
    noise = torch.stack([torch.randn(backbone.sample_shape, generator=draw) for draw in draws])
    media = backbone.decode(sampler(noise, draws, backbone.conditions(labels, None), backbone.conditions.uncond(labels)))
    judge = student.task.judge()
    assert judge is not None  # noqa: S101 (digits have one)
    return media[:, 0].clamp(0, 1), judge.fits(media, labels)


def draw(rows: dict[str, tuple[Tensor, Tensor]], output: Path) -> None:
    """Writes the picture of `rows` by their titles."""
    matplotlib.rcParams.update({"font.family": "DejaVu Sans", "font.size": 9})
    count = len(next(iter(rows.values()))[0])
    figure = Figure(figsize=(0.42 * count + 1.5, 0.46 * len(rows) + 0.1), layout="constrained")
    axes = figure.subplots(len(rows), count)
    for line, (title, (pictures, right)) in zip(axes, rows.items(), strict=True):
        for place, (axis, picture, fits) in enumerate(zip(line, pictures, right, strict=True)):
            axis.imshow(picture, cmap="gray_r", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
            for spine in axis.spines.values():
                spine.set(color=GREEN if fits else RED, linewidth=1.6)
            if place == 0:
                axis.set_ylabel(title, rotation=0, ha="right", va="center", labelpad=6)
    figure.savefig(output, dpi=110)


def main() -> None:
    """Trains what is missing, and draws the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/picture"), help="folder of the comparison that is drawn")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "images" / "digits.png", help="PNG file")
    given = parser.parse_args()
    found = compare("digits", [*ARMS.values()], [0], (), given.runs, get_plugin_manager())
    accelerator, rows = Accelerator(cpu=True), dict[str, tuple[Tensor, Tensor]]()
    for name, arm in ARMS.items():
        student = load_student(run_folder(given.runs, arm.name, 0), get_plugin_manager())
        prepare(student, of_task(student.task, 10), torch.device("cpu"))
        if not rows:
            title = f"teacher, many steps\n{found.teacher['accuracy'][0]:.1%} right"
            rows[title] = row(student, teacher_sampler(student, accelerator))
        with student.with_weights("ema"):
            title = f"{name}, 1 step\n{found.arms[arm.name]['accuracy'][0]:.1%} right"
            rows[title] = row(student, student_sampler(student, accelerator))
    draw(rows, given.output)


if __name__ == "__main__":
    main()
