"""What an evaluation leaves for people and programs: evaluation.json, evaluation.md, plots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from amd_plugin.evaluate.report.figures import COLOURS
from amd_plugin.evaluate.students.measure import Instruments, Measured
from amd_plugin.evaluate.students.samples import drawn
from amd_plugin.evaluate.students.suite import REPEATS, Suite
from amd_plugin.evaluate.students.summary import Row
from amd_plugin.host.evaluation.pictures import picture
from amd_plugin.host.running.run_folder import write_json
from amd_plugin.host.student.load import Student

_SCORERS = {"geneval": "GenEval", "hpdv2": "HPSv2", "vbench": "VBench"}


@dataclass
class Evaluation:
    """Everything that was found.

    Attributes:
        run, student, weights: what was evaluated.
        suite: what was asked for.
        rows: see `summary.rows`.
        reference: what distances are to, in words.
        tools: what measured.
        measured: ``student`` and, where it was drawn, ``teacher``.
        latents: folder of their samples.
        trained_on: rewards the objective listened to.
    """

    run: Path
    student: Student
    weights: str
    suite: Suite
    rows: list[Row]
    reference: str
    tools: Instruments
    measured: dict[str, Measured]
    latents: Path
    trained_on: list[str]

    @property
    def features(self) -> str | None:
        """What samples are compared in, in words."""
        tools = self.tools
        return tools.vision.name if tools.vision else tools.judge.name if tools.judge else None


def write_results(result: Evaluation, folder: Path) -> None:
    """Writes all files of an evaluation to `folder`, evaluation.json last."""
    plots = _plots(result, folder)
    (folder / "evaluation.md").write_text(_markdown(result, plots))
    config = result.student.recipe.config
    content = {
        "recipe": result.student.recipe.name, "objective": config.objective.name, "step": result.student.step,
        "weights": result.weights, "seed": config.train.seed, "suite": result.suite.form, "prompts": len(result.suite.groups),
        "samples": result.suite.size, "trained_on": result.trained_on,
        "held_out": [*config.evaluate.held_out, *(reward.name for reward in config.evaluate.rewards)],
        "reference": result.reference, "features": result.features,
        "metrics": {row["name"]: {**row, "kind": _kind(row, result)} for row in result.rows},
        "task_metrics": _task_metrics(result), "notes": _notes(result),
    }  # fmt: skip
    write_json(folder / "evaluation.json", content)


def _kind(row: Row, result: Evaluation) -> str:
    kind, _, name = row["name"].partition("/")
    if kind != "reward":
        return "held-out reward" if kind == "held_out" else "held-out metric"
    trained = any(name == other or name.startswith(f"{other}_") for other in result.trained_on)
    return "training reward" if trained else "reward, not trained on"


def _task_metrics(result: Evaluation) -> dict[str, float]:
    """The metrics that training reports, of these samples; only where the task's own classes were asked for."""
    if result.suite.form != "task" or result.tools.judge is None:
        return {}
    groups = result.suite.groups
    samples = torch.cat([drawn(result.latents / "student", group) for group in groups])
    labels = torch.cat([torch.full((group.repeats,), group.label) for group in groups])
    found: dict[str, float] = result.student.task.evaluate(_media(result, samples), labels, samples)
    return {name: value for name, value in found.items() if value == value}


def _notes(result: Evaluation) -> list[str]:
    """What a reader must know before believing the numbers."""
    made, suite = result.measured["student"], result.suite
    trained = ", ".join(result.trained_on) or "no reward"
    notes = [
        f"The student was trained on {trained}; whatever is marked so says little about quality, and all else was held out."
    ]
    notes.append(f"{suite.size} samples of {len(suite.groups)} prompts or classes; distances are to {result.reference}.")
    if any(row["name"] == "frechet" for row in result.rows):
        dimensions = made.features.shape[1]
        notes.append(
            f"The Frechet distance is biased upwards at few samples (here {suite.size} in {dimensions} dimensions): compare it "
            "only between evaluations of as many samples, with the same features."
        )
        if suite.size <= dimensions:
            notes.append(
                "There are fewer samples than dimensions, so covariances are singular: take the distance as a rough sign."
            )
    if "teacher" in result.measured:
        scale = result.student.recipe.guidance_scale
        notes.append(
            f"The teacher's samples start from the same noise, in many steps at guidance {scale}; differences are paired."
        )
    if "motion" in made.each:
        notes.append("A still picture is perfectly consistent: read consistency beside motion and moving.")
    if suite.form in REPEATS:
        notes.append(
            f"Samples lie as the scorer of {_SCORERS[suite.form]} expects them; a part of its prompts is not its score."
        )
    notes += [f"Not computed: {failure}" for failure in made.failures]
    for name, values in made.each.items():
        if missing := int(values.isnan().sum()):
            notes.append(f"{name}: {missing} of {len(values)} samples have no value and are left out.")
    notes.append("Intervals are 95 % bootstrap intervals over prompts, or over samples where classes are asked for.")
    return notes


def _markdown(result: Evaluation, plots: Sequence[str]) -> str:
    recipe, step = result.student.recipe, result.student.step
    lines = [
        f"# {recipe.name}, objective {recipe.config.objective.name}, step {step} ({result.weights})", "",
        "| metric | | value | 95 % interval | teacher | student - teacher | |", "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    arrow = {"up": "higher is better", "down": "lower is better"}
    for row in result.rows:
        theirs, difference = row.get("teacher"), row.get("difference")
        cells = [
            row["name"], arrow[row["better"]], _number(row["value"]), _interval(row),
            _number(theirs["value"]) if theirs else "",
            f"{_number(difference['value'])} {_interval(difference)}" if difference else "",
            _kind(row, result),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", *(f"- {note}" for note in _notes(result))]
    if tasks := _task_metrics(result):
        lines += ["", "As training reports them: " + ", ".join(f"{name} {value:.4g}" for name, value in tasks.items()) + "."]
    lines += [line for name in plots for line in ("", f"![{Path(name).stem}]({name})")]
    return "\n".join(lines) + "\n"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _interval(row: Row) -> str:
    return "" if row["low"] is None else f"[{row['low']:.4g}, {row['high']:.4g}]"


def _plots(result: Evaluation, folder: Path) -> list[str]:
    """Names of the pictures written: samples, and how every metric of single samples is spread."""
    names = []
    if result.suite.form == "task":
        content, kind = picture(result.student.task, {who: _shown(result, who) for who in result.measured})
        (folder / f"samples.{kind}").write_bytes(content)
        names.append(f"samples.{kind}")
    each = {n: v for n, v in result.measured["student"].each.items() if len(v[~v.isnan()].unique()) > 2}
    if each:
        columns = min(4, len(each))
        figure = Figure(figsize=(3 * columns, 2.5 * -(-len(each) // columns)), layout="constrained")
        grid = figure.subplots(-(-len(each) // columns), columns, squeeze=False).flatten()
        for axes, name in zip(grid, each, strict=False):
            for who, measured in result.measured.items():
                values, colour = measured.each[name], COLOURS[1 if who == "student" else 0]
                axes.hist(values[~values.isnan()].numpy(), bins=30, density=True, histtype="step", color=colour, label=who)
            axes.set_title(name, fontsize=9)
            axes.set_yticks([])
        for axes in grid[len(each) :]:
            axes.axis("off")
        grid[0].legend(fontsize=8, frameon=False)
        figure.savefig(folder / "metrics.png", dpi=120)
        names.append("metrics.png")
    return names


def _shown(result: Evaluation, who: str) -> tuple[Any, Any]:
    """(media, labels) of a picture: some of every class, or those of the first prompts."""
    groups = result.suite.groups if result.student.task.num_classes else result.suite.groups[:8]
    parts = [drawn(result.latents / who, group)[:200] for group in groups]
    labels = [torch.full((len(part),), group.label) for part, group in zip(parts, groups, strict=True)]
    return _media(result, torch.cat(parts)), torch.cat(labels)


def _media(result: Evaluation, samples: Tensor) -> Tensor:
    return result.student.backbone.decode_in_parts(samples, result.student.recipe.config.evaluate.batch_size)
