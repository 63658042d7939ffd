"""Objectives x seeds on one recipe, paired by seed: same teacher, same noise, same labels, different objective.

    check every arm's recipe -> teachers -> runs -> `Comparison` -> compare.json, compare.md

Every run is an ordinary run folder under ``arms/ARM/seed-N``. Finished ones are kept and not run again, so a comparison can be
stopped, continued and extended.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import cast

from rich.console import Console

from amd_plugin.atomic import sweep, write_text
from amd_plugin.busy import busy, duration
from amd_plugin.disk import dispensable, output_refused
from amd_plugin.errors import AmdPluginError, InputError
from amd_plugin.evaluate.comparison.arms import Arm
from amd_plugin.evaluate.comparison.jobs import (
    Job,
    Results,
    cores,
    in_worker,
    measure_teacher,
    processor_seconds,
    run_jobs,
    seconds_per_update,
    train_arm,
    visible_gpus,
    worker_pool,
)
from amd_plugin.evaluate.comparison.result import Comparison, best_overall, run_folder
from amd_plugin.evaluate.comparison.tables import markdown
from amd_plugin.evaluate.comparison.time_to_quality import updates_to_quality
from amd_plugin.evaluate.directions import Direction
from amd_plugin.host.running import run_log
from amd_plugin.host.running.folder_kind import is_run
from amd_plugin.host.running.folder_lock import FolderLock
from amd_plugin.host.running.preemption import Preempted
from amd_plugin.host.running.recipe_changes import check_recipe, finished
from amd_plugin.host.running.run_description import about, command_line
from amd_plugin.plugins import PluginManager
from amd_plugin.recipe.loading import Recipe, load
from amd_plugin.tasks import TASKS
from amd_plugin.terminal import tell

log = logging.getLogger(__name__)

LONG = 3600  # seconds


def compare(
    recipe: str, arms: Sequence[Arm], seeds: Sequence[int], overrides: Sequence[str], output: Path, plugins: PluginManager, *,
    workers: int | None = None, console: Console | None = None, select: Sequence[int] = (),
    agree: Callable[[str], bool] | None = None,
) -> Comparison:  # fmt: skip
    """Runs what is missing, and writes `compare.json` and `compare.md` to `output`.

    Args:
        recipe: name or file of the recipe.
        arms: arms from `arms.arms`; the first is the baseline.
        seeds: reported seeds; each trains its own teacher unless the recipe's has a seed or a path.
        overrides: overrides for all arms, ``a.b=value`` each.
        output: folder of the comparison.
        plugins: plugin manager for the checks of the recipes; workers load installed plugins themselves.
        workers: number of worker processes; one per core by default, and one per GPU for pipelines.
        console: console for one line per finished run; quiet where None.
        select: seeds, apart from `seeds`, on which the best tuning of every arm is selected.
        agree: function that is asked, with a question, whether to start what takes over an hour, or nobody knows how long;
            None starts it.

    Raises:
        InputError: before anything runs, if any arm's recipe is wrong or differs from that of its run which is there, a seed
            both selects and reports, or `agree` says no.
        RunError: if any run failed; finished ones are kept.
    """
    if both := sorted({*seeds} & {*select}):
        raise InputError(f"--select-seeds: must be other seeds than those of --seeds, got {both} in both")
    if is_run(output):
        raise InputError(f"--output {output}: holds a run. Choose a new folder, or that of a comparison")
    with busy(console, "checking the recipe of every arm", at_once=False):
        recipes = [_checked(recipe, arm, overrides, plugins) for arm in arms]
    tuned = [arm for arm in arms if sum(other.family == arm.family for other in arms) > 1]
    runs = [(seed, arm) for seed in select for arm in tuned] + [(seed, arm) for seed in seeds for arm in arms]
    config = recipes[0].config  # a pipeline has a GPU for itself, and small networks share one
    at_once = len(visible_gpus()) if config.model.path is not None and config.distributed.device != "cpu" else 0
    workers = min(workers or at_once or cores(), len(arms) * len(seeds))
    job = partial(Job, recipe, tuple(overrides), output)
    with _locked(output), worker_pool(workers, threads=max(1, cores() // workers)) as pool:
        checked = {arm.name: loaded for arm, loaded in zip(arms, recipes, strict=True)}
        missing = [(seed, arm) for seed, arm in runs if not _is_there(output, arm, seed, checked[arm.name])]
        with busy(console, "estimating how long it takes; what has to be trained for rewards is kept"):
            seconds = _expected(pool, job(seeds[0], arms[-1]), recipes[-1], len(missing), workers, output)
        tell(console, _told(len(missing), len(runs), workers, seconds))
        if agree is not None and missing and (seconds is None or seconds > LONG) and not agree("Start?"):
            raise InputError("nothing was started; fewer seeds or arms, or --set train.max_steps=N, take less time")
        # Teachers first: arms of one seed would only wait for each other.
        teachers = run_jobs(pool, measure_teacher, [job(seed) for seed in (*select, *seeds)], console)
        results = run_jobs(pool, train_arm, [job(seed, arm) for seed, arm in runs], console)
    comparison = _comparison(recipes, arms, seeds, select, results, teachers, output)
    comparison.write(output)
    with dispensable(output / "compare.md", "the same command writes it, and trains nothing twice"):
        write_text(output / "compare.md", markdown(comparison))
    return comparison


@contextmanager
def _locked(output: Path) -> Iterator[None]:
    """Inside, no other comparison works in the folder `output`."""
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise output_refused(error) from error
    lock = FolderLock(output)
    lock.acquire()
    try:
        sweep(output)
        yield
    finally:
        lock.release()


def _is_there(output: Path, arm: Arm, seed: int, recipe: Recipe) -> bool:
    """Whether the run of `arm` on `seed` is finished; raises InputError for a folder that its worker would refuse."""
    own = recipe.config.train.model_copy(update={"seed": seed, "trackers": []})
    of_seed = replace(recipe, config=recipe.config.model_copy(update={"train": own}))
    folder = run_folder(output, arm.name, seed)
    if finished(folder, of_seed) is not None:
        return True
    if is_run(folder):
        check_recipe(folder, of_seed)
    return False


def _expected(pool: ProcessPoolExecutor, probe: Job, recipe: Recipe, missing: int, workers: int, output: Path) -> float | None:
    """About how many seconds the missing runs take; None where that cannot be known before one was made.

    From the runs that are there, or from some updates of the job `probe` where its networks are small and made here.
    """
    if not missing:
        return 0.0
    known = [seconds for folder in output.glob("arms/*/seed-*") if (seconds := processor_seconds(folder)) is not None]
    if not known:
        if recipe.config.model.network is None:
            return None
        try:
            known = [recipe.config.train.max_steps * pool.submit(in_worker, seconds_per_update, probe).result()]
        except Preempted:
            raise
        except AmdPluginError as error:  # only the estimate is lost; the runs say what is wrong with them
            log.warning("how long the runs take is not known: %s", error)
            return None
    return sum(known) / len(known) * missing / min(workers, missing)


def _told(missing: int, total: int, workers: int, seconds: float | None) -> str:
    there = f"{total - missing} of {total} runs are there; " if missing < total else ""
    if seconds is None:
        return f"{there}{missing} to make, {workers} at a time; how long that takes shows when the first is finished"
    return f"{there}{missing} to make, {workers} at a time: about {duration(seconds)}, beside teachers and evaluations"


def _checked(recipe: str, arm: Arm, overrides: Sequence[str], plugins: PluginManager) -> Recipe:
    try:
        loaded = load(recipe, plugins, (*overrides, *arm.overrides), arm.objective)
    except InputError as error:
        message = str(error)
        for override in arm.overrides:
            message = message.replace(f"--set {override}:", f"arm '{arm.name}', {override}:")
        raise InputError(message) from error
    if unknown := sorted(option for option in loaded.unused_options if f"objective.{option}" in arm.keys):
        raise InputError(f"arm '{arm.name}': objective '{arm.objective}' has no option {', '.join(unknown)}")
    return loaded


def _comparison(
    recipes: Sequence[Recipe], arms: Sequence[Arm], seeds: Sequence[int], select: Sequence[int], results: Results,
    teachers: Results, output: Path,
) -> Comparison:  # fmt: skip
    """The comparison in the metrics that all runs and all teachers have."""
    config = recipes[0].config
    directions = cast("Mapping[str, Direction]", TASKS[config.data.task].metrics)
    everywhere = [*results.values(), *teachers.values()]
    metrics = [m for m in results[arms[0].name, seeds[0]] if all(m in values for values in everywhere)]
    judges = [*config.evaluate.held_out, *(reward.name for reward in config.evaluate.rewards)]
    better: dict[str, Direction] = {m: directions.get(m, "up") for m in metrics}
    held_out = [m for m in judges if m in metrics]
    for name in [m for m in judges if m not in metrics]:
        without = sorted(f"{arm}, seed {seed}" for (arm, seed), values in {**results, **teachers}.items() if name not in values)
        log.warning("held-out metric '%s' is left out: it has no finite value in %s", name, "; ".join(without) or "any run")

    def per_seed(source: Results, name: str, of: Sequence[int]) -> dict[str, list[float]]:
        return {m: [source[name, seed][m] for seed in of] for m in metrics}

    selected = {}
    for family in dict.fromkeys(arm.family for arm in arms if select):
        rivals = [arm.name for arm in arms if arm.family == family]
        on_select = {name: per_seed(results, name, select) for name in rivals if len(rivals) > 1}
        selected[family] = best_overall(on_select, better, held_out) if on_select else family
    return Comparison(
        task=config.data.task,
        recipe=recipes[0].name,
        seeds=list(seeds),
        arms={arm.name: per_seed(results, arm.name, seeds) for arm in arms},
        baseline=arms[0].name,
        better=better,
        held_out=held_out,
        select_seeds=list(select),
        families={arm.name: arm.family for arm in arms},
        selected=selected,
        unused={a.objective: loaded.unused_options for a, loaded in zip(arms, recipes, strict=True) if loaded.unused_options},
        seconds={arm.name: [processor_seconds(run_folder(output, arm.name, seed)) for seed in seeds] for arm in arms},
        updates=_updates(arms, seeds, output, {metric: better[metric] for metric in held_out}),
        teacher=per_seed(teachers, "teacher", seeds),
        own_teachers=config.own_teachers,
        command=command_line(),
        commits=_commits(arms, seeds, output),
    )


def _commits(arms: Sequence[Arm], seeds: Sequence[int], output: Path) -> list[str]:
    """The commits of the source that made the runs, as far as they are known."""
    found = set()
    for folder in (run_folder(output, arm.name, seed) for arm in arms for seed in seeds):
        with suppress(InputError):  # a run's results do not depend on run.json
            found.add(about(folder).commit)
    return sorted(found - {""})


def _updates(
    arms: Sequence[Arm], seeds: Sequence[int], output: Path, metrics: Mapping[str, Direction]
) -> dict[str, dict[str, list[int | None]]]:
    """Metric -> arm -> updates per seed until the arm is as good as the first arm at its end; see `time_to_quality`."""
    curves = [{arm.name: run_log.read(run_folder(output, arm.name, seed) / "metrics.jsonl") for arm in arms} for seed in seeds]
    found = {}
    for metric, direction in metrics.items():
        of_seeds = [updates_to_quality(of_seed, arms[0].name, metric, direction) for of_seed in curves]
        if all(of_seeds):
            found[metric] = {arm.name: [of_seed[arm.name] for of_seed in of_seeds] for arm in arms}
    return found
