"""One self-contained HTML file on runs and comparisons: pictures, tables, and the commands that made them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from amd_plugin import plugin_files
from amd_plugin.atomic import write_text
from amd_plugin.config import RecipeConfig
from amd_plugin.disk import in_words, remedy
from amd_plugin.errors import InputError
from amd_plugin.evaluate.colours import COLOURS
from amd_plugin.evaluate.comparison import result
from amd_plugin.evaluate.comparison.result import Comparison, run_folder
from amd_plugin.evaluate.comparison.tables import counted, difference, how_selected, spread, updates_needed
from amd_plugin.evaluate.directions import ARROWS, Direction
from amd_plugin.evaluate.report import figures, gallery, page
from amd_plugin.evaluate.report.beside import beside
from amd_plugin.evaluate.report.judged import judged
from amd_plugin.host.evaluation.held_out import held_out_names
from amd_plugin.host.running import run_cost, run_log
from amd_plugin.host.running.folder_kind import check_run, is_run
from amd_plugin.host.running.recipe_changes import results
from amd_plugin.host.running.run_description import about, repair, saved_config
from amd_plugin.plugins import PluginManager
from amd_plugin.recipe import shipped
from amd_plugin.tasks import TASKS

log = logging.getLogger(__name__)

# Keys of metrics.jsonl -> titles of the curves of advantages, weights and losses.
ZONE = {
    "objective/zone_share": "share of samples in the zone",
    "objective/advantage_std": "standard deviation of advantages",
}
SIGNALS = ZONE | {
    "objective/zone_share/low": "share in the zone, low noise",
    "objective/zone_share/high": "share in the zone, high noise",
    "objective/clip_share": "share of advantages at the limit",
    "objective/zero_spread_share": "share in groups of equal rewards",
    "objective/quiet_share": "share in groups equal to within tolerance",
    "objective/tilt_ratio": "implied tilt, largest / smallest",
    "objective/tilt_kl": "implied tilt, KL in nats",
    "objective/guidance": "effective guidance scale",
    "objective/match_norm": "norm of matching",
    "objective/guide_norm": "norm of guidance",
    "objective/match_guide_cosine": "cosine of matching and guidance",
    "loss/fake_score/low": "fake-score loss, low noise",
    "loss/fake_score/high": "fake-score loss, high noise",
    "objective/coherence_zone/low": "coherence, zone, low noise",
    "objective/coherence_outside/low": "coherence, elsewhere, low noise",
    "objective/advantage_guidance": "scale of advantage guidance",
    "objective/contrast_ratio": "length of contrast / matching",
    "objective/contrast_reliability": "reliability of the contrast",
    "objective/contrast_confidence": "confidence in the contrast",
    "objective/contrast_evidence_zone/low": "evidence of success, zone, low noise",
    "objective/contrast_evidence_outside/low": "evidence of success, elsewhere, low noise",
}
# Prefixes of keys that end in a reward's name -> titles of their curves.
REWARD_SIGNALS = {
    "reward/": "{} (training reward)",
    "evaluated_reward/": "{}, evaluation samples",
    "sensor/": "correlation of {} with judge",
}


def write_report(folders: Sequence[Path], output: Path, plugins: PluginManager) -> Path:
    """Writes the report on run folders and comparison folders to `output`, and returns `output`.

    Raises:
        InputError: for a folder that is neither, or an `output` that cannot be written.
    """
    sections = [
        _comparison_section(folder, plugins) if (folder / result.FILE).is_file() else _run_section(folder, plugins)
        for folder in folders
    ]
    try:
        write_text(output, page.render(sections))
    except OSError as error:
        raise InputError(f"--output {in_words(error)}. {remedy(error)}, and give the same command again") from error
    return output


def _comparison_section(folder: Path, plugins: PluginManager) -> dict[str, Any]:
    comparison = Comparison.from_file(folder / result.FILE)
    seeds = comparison.seeds
    runs = {arm: [run_folder(folder, arm, seed) for seed in seeds] for arm in comparison.arms}
    for run in (run for of_arm in runs.values() for run in of_arm if is_run(run)):
        try:
            repair(run)
        except (InputError, OSError) as error:  # most of the page needs no description of its runs
            log.warning("%s", error)
    config = saved_config(runs[comparison.baseline][0])
    with_curves = [arm for arm in runs if "@" not in arm][: len(COLOURS)]
    shown = with_curves[:4]
    held_out = held_out_names(config, comparison.teacher)
    titles = {metric: f"{metric} ({ARROWS[comparison.better[metric]]})" for metric in held_out}
    judged = {f"held_out/{metric}": title for metric, title in titles.items()}
    curves = {arm: [run_log.read(run / "metrics.jsonl") for run in runs[arm]] for arm in with_curves}
    palette = figures.colours(with_curves)
    rewarded = {arm: lines for arm, lines in curves.items() if any("objective/zone_share" in line for line in lines[0])}
    return {
        "title": comparison.recipe,
        "lead": f"The same student, distilled with {len(comparison.arms)} objectives or settings, {counted(seeds)} each. "
        f"{_whose_teacher(config)}; all arms of a seed share it, and all their random numbers.",
        "caveat": _caveat(config),
        "several_seeds": len(seeds) > 1,
        "tiles": [_tile(comparison, metric) for metric in held_out] if len(shown) > 1 else [],
        **_samples(config, {arm: runs[arm][0] for arm in shown}, seeds[0], plugins),
        "curves": figures.learning_curves(curves, judged, palette),
        "sensor": figures.quality_by_reward(rewarded, _sensors(rewarded), judged, palette),
        "rewards": figures.learning_curves(rewarded, _rewards(rewarded), palette) if rewarded else None,
        "signals": figures.learning_curves(rewarded, _signals(rewarded), palette) if rewarded else None,
        "levels": figures.zone_over_time(curves),
        "weights": figures.weights_over_time(curves),
        "alarms": _alarms(curves, seeds),
        "pairs": figures.paired_seeds({arm: comparison.arms[arm] for arm in shown}, titles, palette),
        "table": _table(comparison, config),
        "cost": _cost(comparison),
        "commands": [comparison.command],
    }  # fmt: skip


def _run_section(folder: Path, plugins: PluginManager) -> dict[str, Any]:
    check_run(folder, comparison=result.FILE)
    repair(folder)
    config, known = saved_config(folder), about(folder)
    lines = run_log.read(folder / "metrics.jsonl") if (folder / "metrics.jsonl").is_file() else []
    curves = {known.objective: [lines]}
    evaluation = results(folder)
    unfinished = "" if evaluation is not None else _unfinished(folder, config, lines)
    evaluation = evaluation or _newest_evaluation(lines)
    palette = figures.colours(list(curves))
    losses = {"loss/student": "student loss", "loss/fake_score": "fake-score loss"}
    better = cast("Mapping[str, Direction]", TASKS[config.data.task].metrics)
    arrows = {metric: ARROWS[better.get(metric, "up")] for metric in evaluation}
    judged = {f"held_out/{m}": f"{m} ({arrows[m]})" for m in held_out_names(config, evaluation)}
    rewards, zone = _rewards(curves), {key: title for key, title in ZONE.items() if any(key in line for line in lines)}
    return {
        "title": f"{known.recipe}, objective {known.objective}",
        "lead": f"One run, seed {config.train.seed}. A single run says little: compare objectives over several seeds"
        + (f" with {plugin_files.command('compare', known.recipe)}." if known.recipe in shipped() else "."),
        "unfinished": unfinished,
        "caveat": _caveat(config),
        **_samples(config, {known.objective: folder}, config.train.seed, plugins),
        "curves": figures.learning_curves(curves, judged, palette),
        "sensor": figures.quality_by_reward(curves, _sensors(curves), judged, palette),
        "rewards": figures.learning_curves(curves, rewards, palette),
        "zone": figures.learning_curves(curves, zone, palette),
        "signals": figures.learning_curves(curves, {**_signals(curves), **losses}, palette) if lines else None,
        "beside": gallery.pairs(folder),
        "evaluate": plugin_files.command("evaluate", folder) if config.model.path is not None else "",
        "levels": figures.zone_over_time(curves),
        "weights": figures.weights_over_time(curves),
        "alarms": _alarms(curves, [config.train.seed]),
        "table": {
            "metrics": [f"{metric} {arrow}" for metric, arrow in arrows.items()],
            "rows": [(known.objective, [f"{value:.4g}" for value in evaluation.values()])],
        },
        "spent": _spent(folder, lines),
        "commands": [known.command],
    }  # fmt: skip


def _spent(folder: Path, lines: Sequence[Mapping[str, float]]) -> list[tuple[str, str]]:
    """What a run has cost, as names and values: samples scored from its metrics, time and memory as of its last start."""
    scored = [line["cost/scored_samples"] for line in lines if "cost/scored_samples" in line]
    rows = []
    if (cost := run_cost.read(folder)) is not None:
        rows = [("seconds per student update", f"{cost.seconds_per_update:.3g}"), ("most memory", f"{cost.gigabytes:.1f} GB")]
    if scored:
        updates = max(int(line["step"]) for line in lines)
        each = sum(scored) / len(scored)
        rows += [("samples scored per student update", f"{each:.0f}"), ("samples scored in all", f"{each * updates:,.0f}")]
    return rows


def _unfinished(folder: Path, config: RecipeConfig, lines: Sequence[Mapping[str, float]]) -> str:
    """A sentence on a run that has no result yet: it is going on, or was stopped, or failed."""
    step = max((int(line["step"]) for line in lines), default=0)
    return (
        f"This run is not finished: {step} of {config.train.max_steps} updates are logged, and all of this is of what "
        "there is so far. "
        f"If nothing trains it any more, go on with: {plugin_files.command('train', '--resume', folder)}"
    )


def _newest_evaluation(lines: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The held-out metrics of the last evaluation that was logged; empty where there was none."""
    evaluated = [line for line in lines if any(key.startswith("held_out/") for key in line)]
    newest = evaluated[-1] if evaluated else {}
    return {key.removeprefix("held_out/"): value for key, value in newest.items() if key.startswith("held_out/")}


def _samples(config: RecipeConfig, runs: dict[str, Path], seed: int, plugins: PluginManager) -> dict[str, Any]:
    """Pictures of the data, the teacher and each run's student, now and over time; of a user's pipeline, what runs saved."""
    over_time = gallery.over_time(runs)
    if config.model.path is not None:
        folders = list(runs.values())
        note = "Newest samples of the averaged students, drawn with the exported scheduler: a row per held-out prompt."
        shown = {"pictures": gallery.newest(folders), "over_time": over_time}
        return {**shown, "samples_note": note, "prompts": gallery.prompts(folders[0])}
    steps = f"{config.model.student_steps} step" + "s" * (config.model.student_steps > 1)
    note = f"Seed {seed}. Students are drawn from their averaged weights with the exported scheduler."
    titled = {f"{name}, {steps}": run for name, run in runs.items()}
    picture, teacher = beside(config, titled, seed, plugins)
    shown = {"pictures": [picture], "teacher": teacher, "over_time": over_time}
    return {**shown, "samples_note": note, "judged": judged(config, titled, seed, plugins)}


def _tile(comparison: Comparison, metric: str) -> dict[str, Any]:
    """The first arm beside the baseline on one metric, and against the selected or the best tuned baseline if there is one."""
    base = comparison.baseline
    arm = next(a for a in comparison.arms if a != base and not a.startswith(f"{base}@"))
    paired = comparison.paired(arm, base, metric)
    tile = {
        "metric": metric,
        "direction": ARROWS[comparison.better[metric]],
        "base": f"{base} {comparison.mean(base, metric):.3f}",
        "arm": f"{arm} {comparison.mean(arm, metric):.3f}",
        "difference": f"{paired.mean:+.3f}" + (f" ± {paired.deviation:.3f}" if len(comparison.seeds) > 1 else ""),
        "wins": f"better in {paired.wins} of {counted(comparison.seeds)}",
    }
    if arm in comparison.selected:
        best, arm = comparison.selected_arms()[0], comparison.selected[arm]
        tile["tuned"] = f"chosen on other seeds, {arm} to {best}: {difference(comparison, arm, best, metric)}"
    elif (best := comparison.best_tuned(metric)) != base:
        tile["tuned"] = f"to {best}, the best here: {difference(comparison, arm, best, metric)}"
    return tile


def _table(comparison: Comparison, config: RecipeConfig) -> dict[str, Any]:
    base, metrics = comparison.baseline, list(comparison.teacher)

    def differences(arm: str, against: str) -> tuple[str, list[str]]:
        return arm, [difference(comparison, arm, against, metric) for metric in metrics]

    guidance = "no guidance" if config.model.path is None else "the recipe's guidance"
    rows = [(f"teacher, many steps, {guidance}", [spread(comparison.teacher[m]) for m in metrics])]
    rows += [(arm, [spread(values[m]) for m in metrics]) for arm, values in comparison.arms.items()]
    table: dict[str, Any] = {
        "metrics": [f"{metric} {ARROWS[comparison.better[metric]]}" for metric in metrics],
        "rows": rows,
        "pairs": [differences(arm, base) for arm in comparison.arms if arm != base],
        "base": base,
    }
    if comparison.selected:
        against, chosen = comparison.selected_arms()
        table |= {"how": how_selected(comparison), "against": against}
        table["chosen"] = [differences(arm, against) for arm in chosen]
    return table


def _cost(comparison: Comparison) -> dict[str, Any] | None:
    """Processor seconds of each arm, and the updates until it is where the baseline ends; None where neither is known."""
    seconds = {arm: [value for value in comparison.seconds.get(arm, ()) if value is not None] for arm in comparison.arms}
    if not any(seconds.values()) and not comparison.updates:
        return None
    cells = {arm: [spread(values, 0) if values else "unknown"] for arm, values in seconds.items()}
    rows = [(arm, [*cells[arm], *(updates_needed(comparison, arm, m) for m in comparison.updates)]) for arm in comparison.arms]
    return {"metrics": ["processor seconds", *comparison.updates], "rows": rows, "base": comparison.baseline}


def _whose_teacher(config: RecipeConfig) -> str:
    return "Every seed trains its own teacher" if config.own_teachers else "All seeds have one teacher"


def _caveat(config: RecipeConfig) -> str:
    if config.model.path is not None:
        return (
            "There is no ground truth here: the held-out metrics compare pixels, and rewards are models with blind spots. "
            "Look at the samples, and judge by rewards that were not trained on."
        )
    if not {"label_noise", "outliers"} & set(config.data.options):
        return "Nobody put errors into the teacher's data: what the teacher gets wrong, it gets wrong by itself."
    noise, outliers = (config.data.options.get(name, 0.0) for name in ("label_noise", "outliers"))
    if not noise and not outliers:
        return "The teacher is reliable: its data had no wrong labels and no outliers. AMD should gain little over DMD here."
    flaws = [f"{noise:.0%} of its training labels are random"] * (noise > 0)
    flaws += [f"{outliers:.0%} of its training samples are outliers"] * (outliers > 0)
    return (
        f"The teacher is deliberately unreliable: {' and '.join(flaws)}. The reward has information that the teacher lacks, "
        "which is where AMD helps; this does not show how often that happens in practice. With "
        f"{' '.join(f'--set data.{name}=0' for name in ('label_noise', 'outliers') if name in config.data.options)} "
        "the teacher is reliable, and AMD's gain is small."
    )


def _signals(curves: figures.Curves) -> dict[str, str]:
    """Key in metrics.jsonl -> title, for every signal of advantages and weights that any run has."""
    keys = {key for seeds in curves.values() for seed in seeds for line in seed for key in line}
    return {key: title for key, title in SIGNALS.items() if key in keys}


def _rewards(curves: figures.Curves) -> dict[str, str]:
    """Key in metrics.jsonl -> title, for every reward that any run has."""
    keys = dict.fromkeys(key for seeds in curves.values() for seed in seeds for line in seed for key in line)
    titles: dict[str, str] = {}
    for prefix, title in REWARD_SIGNALS.items():
        titles |= {key: title.format(key.removeprefix(prefix)) for key in keys if key.startswith(prefix)}
    return titles


def _sensors(curves: figures.Curves) -> dict[str, str]:
    """Key in metrics.jsonl -> title, for every training reward of the evaluations' samples."""
    return {key: title for key, title in _rewards(curves).items() if key.startswith("evaluated_reward/")}


def _alarms(curves: figures.Curves, seeds: Sequence[int]) -> list[str]:
    """One line for each run with a reward-hacking alarm: its first step, and the number of evaluations with an alarm."""
    lines = []
    for arm, runs in curves.items():
        for seed, log in zip(seeds, runs, strict=True):
            steps = [line["step"] for line in log if line.get("hacking_alarm")]
            if steps:
                lines.append(f"{arm}, seed {seed}: from step {steps[0]:.0f}, at {len(steps)} evaluations")
    return lines
