"""Draws docs/images/digits.png: the same noise and labels through a teacher in many steps, its DMD student and its AMD student.

amd-plugin compare digits --objectives dmd,amd --seeds 1 --output runs/digits
python docs/draw_students.py runs/digits/arms/dmd/seed-0 runs/digits/arms/amd/seed-0 --output docs/images/digits.png
"""

import argparse
from pathlib import Path

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor

from amd_plugin import get_plugin_manager
from amd_plugin.evaluate.students.samples import Sampler, prepare, student_sampler, teacher_sampler
from amd_plugin.evaluate.students.suite import of_task
from amd_plugin.host.student.load import Student, load_student
from amd_plugin.randomness import generator

COLUMNS, ENLARGED, GAP = 2, 6, 4  # samples per digit; pixels of one pixel; pixels between rows


@torch.no_grad()
def row(student: Student, sampler: Sampler) -> Tensor:
    """One row of pictures in [0, 1], [height, width]: `COLUMNS` of each digit, the same noise in every row."""
    backbone, labels = student.backbone, torch.arange(10).repeat_interleave(COLUMNS)
    draws = [generator(0, "picture", place) for place in range(len(labels))]
    noise = torch.stack([torch.randn(backbone.sample_shape, generator=draw) for draw in draws])
    samples = sampler(noise, draws, backbone.conditions(labels, None), backbone.conditions.uncond(labels))
    return torch.cat([*backbone.decode(samples)[:, 0].clamp(0, 1)], 1)


def main() -> None:
    """Draws the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="run folders of students with one teacher")
    parser.add_argument("--output", type=Path, required=True, help="PNG file")
    given = parser.parse_args()
    accelerator, rows = Accelerator(cpu=True), list[Tensor]()
    for run in given.runs:
        student = load_student(run, get_plugin_manager())
        prepare(student, of_task(student.task, 10), torch.device("cpu"))
        rows = rows or [row(student, teacher_sampler(student, accelerator))]
        with student.with_weights("ema"):
            rows.append(row(student, student_sampler(student, accelerator)))
    big = [part.repeat_interleave(ENLARGED, 0).repeat_interleave(ENLARGED, 1) for part in rows]
    white = torch.ones(GAP, big[0].shape[1])
    whole = torch.cat([part for one in big for part in (one, white)][:-1])
    Image.fromarray((whole * 255).round().byte().numpy()).save(given.output)


if __name__ == "__main__":
    main()
