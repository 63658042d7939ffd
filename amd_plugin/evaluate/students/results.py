"""The files of an evaluation: evaluation.json for programs, evaluation.md and plots for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from amd_plugin.atomic import replaced_file, write_bytes, write_text
from amd_plugin.choices import Weights
from amd_plugin.evaluate.colours import COLOURS
from amd_plugin.evaluate.directions import WORDS
from amd_plugin.evaluate.students.measure import Measurements, MetricModels
from amd_plugin.evaluate.students.samples import load_samples
from amd_plugin.evaluate.students.suite import REPEATS, Group, Suite
from amd_plugin.evaluate.students.summary import Row
from amd_plugin.host.evaluation.pictures import as_written, picture
from amd_plugin.host.running.run_folder import write_json
from amd_plugin.host.student.load import Student

_SCORERS = {"geneval": "GenEval", "hpdv2": "HPSv2", "vbench": "VBench"}


@dataclass
class Evaluation:
    """The result of an evaluation.

    Attributes:
        run: folder of the run.
        student: student that was evaluated.
        weights: weights of the student that were evaluated.
        suite: suite of prompts or classes.
        rows: rows of the table, see `summary.rows`.
        reference: reference set of the distances, in words.
        metric_models: models that measured.
        measurements: ``student`` and, where it was sampled, ``teacher`` -> measurements of its samples.
        latents: folder of the latent samples, with one folder for each of `measurements`.
        trained_on: names of the rewards that the objective used.
    """

    run: Path
    student: Student
    weights: Weights
    suite: Suite
    rows: list[Row]
    reference: str
    metric_models: MetricModels
    measurements: dict[str, Measurements]
    latents: Path
    trained_on: list[str]


def write_results(result: Evaluation, folder: Path) -> None:
    """Writes all files of an evaluation to `folder`, evaluation.json last."""
    plots = _plots(result, folder)
    write_text(folder / "evaluation.md", _markdown(result, plots))
    config = result.student.recipe.config
    content = {
        "recipe": result.student.recipe.name, "objective": config.objective.name, "step": result.student.step,
        "weights": result.weights, "seed": config.train.seed, "suite": result.suite.form, "prompts": len(result.suite.groups),
        "samples": result.suite.size, "trained_on": result.trained_on,
        "held_out": [*config.evaluate.held_out, *(reward.name for reward in config.evaluate.rewards)],
        "reference": result.reference, "features": result.metric_models.features,
        "metrics": {row["name"]: {**row, "kind": _kind(row, result)} for row in result.rows},
        "task_metrics": _task_metrics(result), "notes": _notes(result),
    }  # fmt: skip
    write_json(folder / "evaluation.json", content)


def _kind(row: Row, result: Evaluation) -> str:
    """Whether a metric is held out, a training reward, or a reward that the objective did not use."""
    kind, _, name = row["name"].partition("/")
    if kind != "reward":
        return "held-out reward" if kind == "held_out" else "held-out metric"
    trained = any(name == other or name.startswith(f"{other}_") for other in result.trained_on)
    return "training reward" if trained else "reward, not trained on"


def _task_metrics(result: Evaluation) -> dict[str, float]:
    """The metrics that training reports, computed on these samples; empty for other prompts than the task's own classes."""
    if result.suite.form != "task" or result.metric_models.judge is None:
        return {}
    groups = result.suite.groups
    samples = torch.cat([load_samples(result.latents / "student", group) for group in groups])
    labels = torch.cat([_labels(group, group.repeats) for group in groups])
    found: dict[str, float] = result.student.task.evaluate(_media(result, samples), labels, samples)
    return {name: value for name, value in found.items() if isfinite(value)}


def _notes(result: Evaluation) -> list[str]:
    """Notes on how to read the numbers, and on what they do not show."""
    measurements, suite = result.measurements["student"], result.suite
    trained = ", ".join(result.trained_on) or "no reward"
    notes = [
        f"The student was trained on {trained}. A training reward says little about quality; all other metrics were held out."
    ]
    notes.append(f"{suite.size} samples of {len(suite.groups)} prompts or classes; distances are to {result.reference}.")
    if any(row["name"] == "frechet" for row in result.rows):
        dimensions = measurements.features.shape[1]
        notes.append(
            f"The Frechet distance is biased upwards for few samples (here {suite.size} in {dimensions} dimensions): compare "
            "it only between evaluations with equally many samples and the same features."
        )
        if suite.size <= dimensions:
            notes.append(
                "There are no more samples than dimensions, so covariances are singular: the distance is a rough indication."
            )
    if "teacher" in result.measurements:
        scale = result.student.recipe.objective.guidance_scale
        notes.append(
            f"The teacher's samples start from the same noise, in many steps at guidance {scale}; differences are paired."
        )
    if "motion" in measurements.each:
        notes.append("A still picture is perfectly consistent: read consistency beside motion and moving.")
    if suite.form in REPEATS:
        notes.append(
            f"Sample files have the layout that {_SCORERS[suite.form]}'s scorer expects; a score on a part of its prompts is "
            "not the benchmark's score."
        )
    notes += [f"Not computed: {failure}" for failure in measurements.failures]
    for name, values in measurements.each.items():
        if missing := int((~values.isfinite()).sum()):
            notes.append(f"{name}: {missing} of {len(values)} samples have no finite value and are left out.")
    notes.append("Intervals are 95 % bootstrap intervals over prompts, or over samples for class-conditional students.")
    return notes


def _markdown(result: Evaluation, plots: Sequence[str]) -> str:
    recipe, step = result.student.recipe, result.student.step
    lines = [
        f"# {recipe.name}, objective {recipe.config.objective.name}, step {step} ({result.weights})", "",
        "| metric | | value | 95 % interval | teacher | student - teacher | |", "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in result.rows:
        teacher, difference = row.get("teacher"), row.get("difference")
        cells = [
            row["name"], WORDS[row["better"]], _number(row["value"]), _interval(row),
            _number(teacher["value"]) if teacher else "",
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
    """Writes pictures of the samples and the distribution of every metric of single samples; returns their file names."""
    names = []
    if result.suite.form == "task":
        content, kind = picture(result.student.task, {role: _shown(result, role) for role in result.measurements})
        write_bytes(folder / f"samples.{kind}", content)
        names.append(f"samples.{kind}")
    varied = [n for n, v in result.measurements["student"].each.items() if len(torch.unique(v[v.isfinite()])) > 2]
    if varied:
        with replaced_file(folder / "metrics.png") as draft:
            as_written(_histograms(result.measurements, varied)).savefig(draft, dpi=120)
        names.append("metrics.png")
    return names


def _histograms(measurements: Mapping[str, Measurements], metrics: Sequence[str]) -> Figure:
    """One histogram over samples per metric, with student and teacher in the same axes."""
    columns, rows = min(4, len(metrics)), -(-len(metrics) // min(4, len(metrics)))
    figure = Figure(figsize=(3 * columns, 2.5 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, metric in zip(grid, metrics, strict=False):
        for role, measured in measurements.items():
            values, colour = measured.each[metric], COLOURS[1 if role == "student" else 0]
            axes.hist(values[values.isfinite()].numpy(), bins=30, density=True, histtype="step", color=colour, label=role)
        axes.set_title(metric, fontsize=9)
        axes.set_yticks([])
    for axes in grid[len(metrics) :]:
        axes.axis("off")
    grid[0].legend(fontsize=8, frameon=False)
    return figure


def _shown(result: Evaluation, role: str) -> tuple[Tensor, Tensor]:
    """(media, labels) of a picture: up to 200 samples of every class, or of eight prompts."""
    groups = result.suite.groups
    if not result.suite.has_all_classes(result.student.task):  # prompts are often listed by kind
        groups = groups[:: -(-len(groups) // 8)]
    parts = [load_samples(result.latents / role, group)[:200] for group in groups]
    labels = [_labels(group, len(part)) for part, group in zip(parts, groups, strict=True)]
    return _media(result, torch.cat(parts)), torch.cat(labels)


def _media(result: Evaluation, samples: Tensor) -> Tensor:
    return result.student.backbone.decode_in_parts(samples, result.student.recipe.config.evaluate.batch_size)


def _labels(group: Group, count: int) -> Tensor:
    """Labels [count] of a group of the task's own prompts or classes."""
    if group.label is None:
        raise ValueError("a group of a prompt file has no label")
    return torch.full((count,), group.label)
