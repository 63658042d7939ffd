"""One self-contained HTML file about runs and comparisons: pictures, tables, and the commands that made them."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader
from safetensors.torch import load_file

import amd_plugin
from amd_plugin.config import RecipeConfig
from amd_plugin.errors import InputError
from amd_plugin.evaluate.comparison.tables import best_tuned, deviation, difference, how_selected, paired, selected
from amd_plugin.evaluate.report import figures
from amd_plugin.host.running import run_log
from amd_plugin.models.backbone import load_backbone
from amd_plugin.models.teacher_samples import SAMPLING_STEPS, teacher_samples
from amd_plugin.plugins import get_plugin_manager
from amd_plugin.randomness import generator
from amd_plugin.tasks import TASKS

_TEMPLATES = Environment(loader=PackageLoader("amd_plugin", "templates"), autoescape=True)

SENSOR = {
    "objective/zone_share": "share of samples in the zone",
    "objective/advantage_std": "spread of advantages",
    "objective/zone_share/low": "share in the zone, low noise",
    "objective/zone_share/high": "share in the zone, high noise",
    "objective/clip_share": "share of advantages at the limit",
    "objective/zero_spread_share": "share in groups of equal rewards",
    "objective/quiet_share": "share in groups equal to within tolerance",
    "objective/known_prompts": "share of prompts seen before",
    "objective/tilt_ratio": "implied tilt, largest / smallest",
    "objective/tilt_kl": "implied tilt, KL in nats",
    "objective/guidance": "effective guidance scale",
    "objective/match_norm": "size of matching",
    "objective/guide_norm": "size of guidance",
    "objective/match_guide_cosine": "cosine of matching and guidance",
    "loss/fake_score/low": "fake-score loss, low noise",
    "loss/fake_score/high": "fake-score loss, high noise",
    "objective/coherence_zone/low": "agreement, zone, low noise",
    "objective/coherence_outside/low": "agreement, elsewhere, low noise",
}
REWARDS = {
    "reward/": "{} (training reward)",
    "evaluated_reward/": "{}, evaluation samples",
    "sensor/": "correlation of {} with judge",
}


def write_report(folders: Sequence[Path], output: Path) -> Path:
    """Writes the report on run folders and comparison folders to `output`.

    Raises:
        InputError: for a folder that is neither, or an `output` that cannot be written.
    """
    sections = [_comparison(folder) if (folder / "compare.json").is_file() else _run(folder) for folder in folders]
    html = _TEMPLATES.get_template("report.html.j2").render(sections=sections, version=amd_plugin.__version__)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(html)
    except OSError as error:
        raise InputError(f"--output {output}: cannot be written: {error}") from error
    return output


def _comparison(folder: Path) -> dict[str, Any]:
    content = json.loads((folder / "compare.json").read_text())
    base, seeds = content["baseline"], content["seeds"]
    runs = {arm: [folder / "arms" / arm / f"seed-{seed}" for seed in seeds] for arm in content["arms"]}
    config = _config(runs[base][0])
    followed = [arm for arm in runs if "@" not in arm][: len(figures.COLOURS)]
    shown = followed[:4]
    held_out = _judges(config, content["teacher"])
    titles = {metric: f"{metric} ({_ARROWS[content['better'][metric]]})" for metric in held_out}
    curves = {arm: [run_log.read(run / "metrics.jsonl") for run in runs[arm]] for arm in followed}
    palette = figures.colours(followed)
    sensing = {arm: lines for arm, lines in curves.items() if any("objective/zone_share" in line for line in lines[0])}
    return {
        "title": content["recipe"],
        "lead": f"The same student, distilled with {len(content['arms'])} objectives or settings, {len(seeds)} seeds each. "
        "Every seed trains its own teacher; all arms of a seed share it, and all their random numbers.",
        "caveat": _caveat(config),
        "tiles": [_tile(content, metric) for metric in held_out] if len(shown) > 1 else [],
        **_samples(config, {arm: runs[arm][0] for arm in shown}, seeds[0]),
        "curves": figures.learning_curves(curves, {f"held_out/{m}": title for m, title in titles.items()}, palette),
        "sensor": figures.learning_curves(sensing, _sensed(sensing), palette) if sensing else None,
        "weights": figures.weights_over_time(curves),
        "alarms": _alarms(curves, seeds),
        "pairs": figures.paired_seeds({arm: content["arms"][arm] for arm in shown}, titles, palette),
        "table": _table(content),
        "commands": [content["command"]],
    }  # fmt: skip


def _run(folder: Path) -> dict[str, Any]:
    config = _config(folder)
    about = json.loads((folder / "run.json").read_text())
    curves = {about["objective"]: [run_log.read(folder / "metrics.jsonl")]}
    if not (folder / "evaluation.json").is_file():
        raise InputError(f"{folder}: the run is not finished. Go on with --resume auto first")
    evaluation = json.loads((folder / "evaluation.json").read_text())
    palette = figures.colours(list(curves))
    losses = {"loss/student": "student loss", "loss/fake_score": "fake-score loss"}
    return {
        "title": f"{about['recipe']}, objective {about['objective']}",
        "lead": f"One run, seed {config.train.seed}. A single run says little: compare objectives over several seeds with "
        f"amd-plugin compare {about['recipe']}.",
        "caveat": _caveat(config),
        **_samples(config, {about["objective"]: folder}, config.train.seed),
        "curves": figures.learning_curves(curves, {f"held_out/{m}": m for m in _judges(config, evaluation)}, palette),
        "sensor": figures.learning_curves(curves, {**_sensed(curves), **losses}, palette),
        "weights": figures.weights_over_time(curves),
        "alarms": _alarms(curves, [config.train.seed]),
        "table": {"metrics": list(evaluation), "rows": [(about["objective"], [f"{v:.4g}" for v in evaluation.values()])]},
        "commands": [about["command"]],
    }  # fmt: skip


def _judges(config: RecipeConfig, measured: Iterable[str]) -> list[str]:
    """The held-out metrics that the recipe names, and the held-out rewards among what was `measured`."""
    return [*config.evaluate.held_out, *(m for m in measured if m not in TASKS[config.data.task].metrics)]


def _samples(config: RecipeConfig, runs: dict[str, Path], seed: int) -> dict[str, Any]:
    """Pictures of the data, the teacher and each run's student, drawn here; of a user's pipeline, those that its runs left."""
    if config.model.path is not None:
        pictures = [max((run / "samples").glob("step-*.*")) for run in runs.values()]
        note = "Samples of the averaged students for the prompts of the held-out evaluation, with the exported scheduler."
        return {"pictures": [figures.inline(p.read_bytes(), p.suffix[1:]) for p in pictures], "samples_note": note}
    count, batch = config.evaluate.samples, config.evaluate.batch_size
    task = TASKS[config.data.task](**config.data.options)
    backbone = load_backbone(config.model, task, seed, get_plugin_manager().families())
    samples = {"data": task.real_data(count, generator(0, "report"))}
    samples[f"teacher, {SAMPLING_STEPS} steps"] = teacher_samples(backbone, config.model, task, seed, count, 1.0, batch)
    steps = f"{config.model.student_steps} step" + "s" * (config.model.student_steps > 1)
    for name, run in runs.items():
        latest = load_file(run / "samples" / "latest.safetensors")
        samples[f"{name}, {steps}"] = (latest["samples"], latest["labels"])
    panels = {title: (backbone.decode_in_parts(made, batch), labels) for title, (made, labels) in samples.items()}
    note = f"Seed {seed}. Students are drawn from their averaged weights with the exported scheduler."
    return {"pictures": [figures.sample_panels(task, panels)], "samples_note": note}


def _tile(content: dict[str, Any], metric: str) -> dict[str, Any]:
    """The first arm beside the baseline on one metric, and against the best tuned baseline if there is one."""
    base = content["baseline"]
    arm = next(a for a in content["arms"] if a != base and not a.startswith(f"{base}@"))
    mean, sd, wins = paired(content, arm, base, metric)
    tile = {
        "metric": metric,
        "direction": _ARROWS[content["better"][metric]],
        "base": f"{base} {statistics.fmean(content['arms'][base][metric]):.3f}",
        "arm": f"{arm} {statistics.fmean(content['arms'][arm][metric]):.3f}",
        "difference": f"{mean:+.3f} ± {sd:.3f}",
        "wins": f"better in {wins} of {len(content['seeds'])} seeds",
    }
    if arm in content.get("selected", {}):
        best, arm = content["selected"].get(base, base), content["selected"][arm]
        tile["tuned"] = f"chosen on other seeds, {arm} to {best}: {difference(content, arm, best, metric)}"
    elif (best := best_tuned(content, metric)) != base:
        tile["tuned"] = f"to {best}, the best here: {difference(content, arm, best, metric)}"
    return tile


def _table(content: dict[str, Any]) -> dict[str, Any]:
    base, metrics = content["baseline"], list(content["teacher"])
    cell = lambda values: f"{statistics.fmean(values):.3f} ± {deviation(values):.3f}"  # noqa: E731
    rows = [("teacher, many steps", [cell(content["teacher"][m]) for m in metrics])]
    rows += [(arm, [cell(values[m]) for m in metrics]) for arm, values in content["arms"].items()]
    pairs = [(arm, [difference(content, arm, base, m) for m in metrics]) for arm in content["arms"] if arm != base]
    heads = [f"{metric} {_ARROWS[content['better'][metric]]}" for metric in metrics]
    table: dict[str, Any] = {"metrics": heads, "rows": rows, "pairs": pairs, "base": base}
    if content.get("selected"):
        against, chosen = selected(content)
        table |= {"how": how_selected(content), "against": against}
        table["chosen"] = [(arm, [difference(content, arm, against, m) for m in metrics]) for arm in chosen]
    return table


def _caveat(config: RecipeConfig) -> str:
    if config.model.path is not None:
        return (
            "Nothing here knows what a right answer would be: the held-out metrics compare pixels, and rewards are models with "
            "blind spots. Look at the samples, and judge by rewards that were not trained on."
        )
    noise, outliers = (config.data.options.get(name, 0.0) for name in ("label_noise", "outliers"))
    if not noise and not outliers:
        return "The teacher is reliable: it saw no wrong labels and no outliers. AMD is expected to gain little over DMD here."
    flaws = [f"{noise:.0%} of its training labels are random"] * (noise > 0)
    flaws += [f"{outliers:.0%} of its training samples are outliers"] * (outliers > 0)
    return (
        f"The teacher is deliberately unreliable: {' and '.join(flaws)}. Here a reward knows something that the teacher does "
        "not, which is where AMD helps; it does not show how often that happens in practice. With --set data.label_noise=0 "
        "(and data.outliers=0) the teacher is reliable, and AMD's gain is small."
    )


def _config(folder: Path) -> RecipeConfig:
    path = folder / "config.yaml"
    if not path.is_file():
        raise InputError(f"{folder}: neither a run (no config.yaml) nor a comparison (no compare.json)")
    return RecipeConfig.model_validate_json(json.dumps(yaml.safe_load(path.read_text())), strict=True)


def _sensed(curves: figures.Curves) -> dict[str, str]:
    """What the reward sensor saw: key in metrics.jsonl -> title, of all that any run has."""
    keys = dict.fromkeys(key for seeds in curves.values() for seed in seeds for line in seed for key in line)
    titles = {key: title for key, title in SENSOR.items() if key in keys}
    for start, title in REWARDS.items():
        titles |= {key: title.format(key.removeprefix(start)) for key in keys if key.startswith(start)}
    return titles


def _alarms(curves: figures.Curves, seeds: Sequence[int]) -> list[str]:
    """In which runs the reward-hacking alarm rang, and when first."""
    found = []
    for arm, runs in curves.items():
        for seed, lines in zip(seeds, runs, strict=True):
            steps = [line["step"] for line in lines if line.get("hacking_alarm")]
            if steps:
                found.append(f"{arm}, seed {seed}: from step {steps[0]:.0f}, at {len(steps)} evaluations")
    return found


_ARROWS = {"up": "↑", "down": "↓", "one": "→ 1"}
