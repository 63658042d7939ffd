"""Objectives x seeds on one recipe, paired by seed: same teacher, same noise, same labels, different objective.

Every run is an ordinary run folder under ``arms/ARM/seed-N``; finished ones are kept and not run again, so a comparison can
be stopped, continued and extended. Writes `compare.json` and `compare.md`.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import signal
import sys
import threading
import time
from collections.abc import Container, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from amd_plugin.config import RewardConfig
from amd_plugin.errors import AmdPluginError, InputError, RunError
from amd_plugin.evaluate.comparison.tables import best_overall, markdown, terminal_table

Overrides = tuple[str, ...]

# AMD's parts, the paper's form, and the controls an effect must beat. Below guidance 2 AMD's default is sharpening alone, so
# arms about adaptation switch it on.
VARIANTS: dict[str, Overrides] = {
    "amd_adaptation_only": ("objective.sharpening=0", "objective.strength=0.5"),
    "amd_sharpening_only": ("objective.strength=0",),
    "amd_both": ("objective.strength=0.5",),
    "amd_static": ("objective.static=true", "objective.coherence_gate=false", "objective.strength=0.5"),
    "amd_paper": (
        "objective.side=both", "objective.sharpening_kind=linear", "objective.sharpening=1", "objective.sharpening_sigma=null",
        "objective.baseline=group", "objective.unit=0", "objective.std_floor=0", "objective.strength=0.5",
        "objective.tolerance=0", "objective.scale=group", "objective.squash=clip", "objective.limit=1",
        "objective.static=false", "objective.coherence_gate=false", "objective.memory_share=0",
    ),
    "amd_random_reward": ("rewards=[{name: random}]",),
    "amd_inverted_reward": (),  # the recipe's own rewards, see `inverted`
}  # fmt: skip
ABLATION = tuple(VARIANTS)


@dataclass(frozen=True)
class Arm:
    """One line of the table.

    Attributes:
        name: of the line.
        objective: what is trained.
        overrides: what differs from the recipe.
        family: the arm this one is a tuning of; itself, if of none.
    """

    name: str
    objective: str
    overrides: Overrides = ()
    family: str = ""

    @property
    def keys(self) -> list[str]:
        """The recipe's keys that it sets itself."""
        return [override.partition("=")[0] for override in self.overrides]


def arms(
    names: Sequence[str], rewards: Sequence[RewardConfig] = (), *, ablate: bool = False, tune: Sequence[str] = (),
    more: Sequence[str] = (),
) -> list[Arm]:  # fmt: skip
    """The arms to run; the first is the baseline.

    Args:
        names: objectives, or keys of `VARIANTS`.
        rewards: the recipe's, which the inverted control turns round.
        ablate: add AMD's parts, the paper's form and the controls: random and inverted rewards, and the mean weights.
        tune: ``key=v1,v2`` each: every arm again with every value, as arms ``dmd@key=v1``, and with several keys every
            combination: an objective that was tuned must not be compared with one that was not. A value may be a list. An arm
            is not tuned over what it sets itself, nor over options that its objective does not have.
        more: ``name=objective key=value key=value`` each: arms of one's own.

    Raises:
        InputError: for a malformed `tune` or `more`, a key that no arm can be tuned over, or two arms of one name.
    """
    wanted = [name.strip() for name in names if name.strip()]
    if not wanted:
        raise InputError("--objectives: must name at least one objective, got none")
    special = VARIANTS | {"amd_inverted_reward": inverted(rewards)}
    named = lambda name: Arm(name, "amd" if name in special else name, special.get(name, ()))  # noqa: E731
    chosen = [*map(named, dict.fromkeys(wanted)), *map(_own_arm, more)]
    chosen += [named(name) for name in ABLATION if ablate and name not in wanted]
    grid = dict(map(_values, tune))
    if len(grid) < len(tune):
        raise InputError(f"--tune: name each key once, with all its values; got {', '.join(tune)}")
    chosen += _tuned(chosen, grid)
    every = [arm.name for arm in chosen]
    twice = next((name for name in every if every.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"two arms would be called '{twice}'; give each name, each value and each last part of a key once")
    return [replace(arm, family=arm.family or arm.name) for arm in chosen]


def inverted(rewards: Sequence[RewardConfig]) -> Overrides:
    """The overrides that turn `rewards` round: what did best now does worst."""
    turned = [reward.model_copy(update={"weight": -reward.weight}).model_dump(mode="json") for reward in rewards]
    return (f"rewards={json.dumps(turned)}",)


def _own_arm(text: str) -> Arm:
    name, equals, rest = text.partition("=")
    objective, *overrides = rest.split() or [""]
    if not name.strip() or not equals or not objective or any("=" not in part for part in overrides):
        raise InputError(f"--arm {text!r}: must read name=objective key.key=value key.key=value")
    if not re.fullmatch(r"[\w.@+-]+", name):
        raise InputError(f"--arm {text!r}: the name becomes a folder's; use letters, digits and . _ @ + -, got '{name}'")
    return Arm(name, objective, tuple(overrides))


def _values(text: str) -> tuple[str, list[str]]:
    """``key=v1,v2`` as (key, values), which may be lists."""
    key, _, listed = text.partition("=")
    values = re.split(r",(?![^\[]*\])", listed)
    if not key or not all(values):
        raise InputError(f"--tune {text}: must read key.key=value,value")
    return key, values


def _tuned(arms: Sequence[Arm], grid: Mapping[str, Sequence[str]]) -> list[Arm]:
    """Every arm at every point of `grid`, key -> values, as far as the keys are its own."""
    from amd_plugin.plugins import accepted, get_plugin_manager

    factories, found, used = get_plugin_manager().objectives(), list[Arm](), set[str]()
    for arm in arms:
        known = accepted(factories[arm.objective]) if arm.objective in factories else None
        mine = {key: values for key, values in grid.items() if not _sets(arm, key) and _has(known, key)}
        used |= set(mine)
        for point in itertools.product(*mine.values()) if mine else ():
            at = dict(zip(mine, point, strict=True))
            name = arm.name + "".join(f"@{key.rpartition('.')[2]}={_in_a_name(value)}" for key, value in at.items())
            overrides = (f"{key}={value}" for key, value in at.items())
            found.append(Arm(name, arm.objective, (*arm.overrides, *overrides), arm.name))
    if nobody := set(grid) - used:
        raise InputError(f"--tune {min(nobody)}: no arm has this option, or leaves it open")
    return found


def _sets(arm: Arm, key: str) -> bool:
    """Whether an override of `arm` is of `key`, of something in it, or of what it is in."""
    return any(f"{key}.".startswith(f"{own}.") or f"{own}.".startswith(f"{key}.") for own in arm.keys)


def _has(options: Container[str] | None, key: str) -> bool:
    """Whether an objective of these options, None for any, listens to a recipe's `key`."""
    section, _, option = key.partition(".")
    return options is None or section != "objective" or option in options


def _in_a_name(value: str) -> str:
    """A value as part of an arm's name, which becomes a folder's."""
    return re.sub(r"[^-+.\w]+", "-", value.strip("[]"))


def parse_seeds(text: str, option: str = "--seeds") -> list[int]:
    """``8`` means 0 to 7, ``3,5,9`` those; raises InputError for anything else."""
    try:
        listed = [int(part) for part in text.split(",")]
    except ValueError:
        listed = [-1]
    seeds = listed if "," in text else list(range(listed[0]))
    if not seeds or min(seeds) < 0 or len(set(seeds)) != len(seeds):
        raise InputError(f"{option}: must be a number of seeds, or different seeds separated by commas, got '{text}'")
    return seeds


def compare(
    recipe: str,
    arms: Sequence[Arm],
    seeds: Sequence[int],
    overrides: Sequence[str],
    output: Path,
    workers: int | None = None,
    console: Console | None = None,
    select: Sequence[int] = (),
) -> Table:
    """Runs what is not there yet, and writes the table.

    Args:
        recipe: a recipe's name or file.
        arms: from `arms()`.
        seeds: each trains its own teacher.
        overrides: ``a.b=value``, for all arms.
        output: the comparison's folder.
        workers: processes; default one per core.
        console: for a line per finished run; quiet where None.
        select: seeds, apart from `seeds`, on which the best tuning of every arm is chosen before the others are looked at.

    Returns:
        The table, for a terminal.

    Raises:
        InputError: before anything runs, if any arm's recipe is wrong, or seeds select and report.
        RunError: if any run failed; finished ones are kept.
    """
    from amd_plugin.plugins import get_plugin_manager
    from amd_plugin.recipe.loading import load

    plugins = get_plugin_manager()
    if both := sorted({*seeds} & {*select}):
        raise InputError(f"--select-seeds: must be other seeds than those of --seeds, got {both} in both")
    loaded = [load(recipe, plugins, (*overrides, *arm.overrides), arm.objective) for arm in arms]
    for arm, found in zip(arms, loaded, strict=True):
        if lost := sorted(option for option in found.unused_options if f"objective.{option}" in arm.keys):
            raise InputError(f"arm '{arm.name}': objective '{arm.objective}' has no option {', '.join(lost)}")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(workers or cores, len(arms) * len(seeds))
    tuned = [arm for arm in arms if sum(other.family == arm.family for other in arms) > 1]
    wanted = [(seed, arm) for seed in select for arm in tuned] + [(seed, arm) for seed in seeds for arm in arms]
    jobs = [(recipe, arm, seed, tuple(overrides), output) for seed, arm in wanted]
    with ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (max(1, cores // workers),)) as pool:
        # Teachers first: arms of one seed would only wait for each other.
        teachers = _run_all(
            pool, _teacher, [(recipe, None, seed, tuple(overrides), output) for seed in (*select, *seeds)], console
        )
        results = _run_all(pool, _run, jobs, console)

    config = loaded[0].config
    everywhere = [*results.values(), *teachers.values()]
    judges = [*config.evaluate.held_out, *(reward.name for reward in config.evaluate.rewards)]
    metrics = [m for m in results[arms[0].name, seeds[0]] if all(m in values for values in everywhere)]
    directions = _directions(config.data.task)
    content = {
        "task": config.data.task,
        "recipe": loaded[0].name,
        "seeds": list(seeds),
        "arms": {a.name: {m: [results[a.name, seed][m] for seed in seeds] for m in metrics} for a in arms},
        "baseline": arms[0].name,
        "better": {m: directions.get(m, "up") for m in metrics},  # what is no metric of the task is a reward
        "held_out": [m for m in judges if m in metrics],
        "select_seeds": list(select),
        "families": {a.name: a.family for a in arms},
        "selected": {},
        "unused": {a.objective: found.unused_options for a, found in zip(arms, loaded, strict=True) if found.unused_options},
        "seconds": {a.name: [_seconds(output, a.name, seed) for seed in seeds] for a in arms},
        "teacher": {m: [teachers["teacher", seed][m] for seed in seeds] for m in metrics},
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }
    for family in dict.fromkeys(arm.family for arm in arms if select):
        rivals = [arm.name for arm in tuned if arm.family == family]
        on = {name: {m: [results[name, seed][m] for seed in select] for m in metrics} for name in rivals}
        content["selected"][family] = best_overall(on, content["better"], content["held_out"]) if on else family
    (output / "compare.json").write_text(json.dumps(content, indent=1))
    (output / "compare.md").write_text(markdown(content))
    return terminal_table(content)


def _run_all(
    pool: ProcessPoolExecutor, function: Any, jobs: list[tuple[Any, ...]], console: Console | None
) -> dict[tuple[str, int], dict[str, float]]:
    """{(arm, seed): metrics}; lets every job finish before reporting those that failed."""
    results, failed = {}, []
    futures = {pool.submit(function, *job): ("teacher" if job[1] is None else job[1].name, job[2]) for job in jobs}
    try:
        for done, future in enumerate(as_completed(futures), 1):
            arm, seed = futures[future]
            try:
                results[arm, seed] = future.result()
                note = "  ".join(f"{name} {value:.3f}" for name, value in list(results[arm, seed].items())[:3])
            except AmdPluginError as error:
                failed.append(f"{arm}, seed {seed}: {error}")
                note = f"failed: {error}"
            if console is not None:
                console.print(f"[{done}/{len(jobs)}] {arm}, seed {seed}: {note}", highlight=False, markup=False, soft_wrap=True)
    except KeyboardInterrupt:
        pool.shutdown(wait=True, cancel_futures=True)
        raise
    if failed:
        raise RunError("\n".join([*failed, "The other runs are kept; the same command runs only what is missing."]))
    return results


def _run(recipe: str, arm: Arm, seed: int, overrides: tuple[str, ...], output: Path) -> dict[str, float]:
    """In a worker: one run, or its result if it is there already."""
    from amd_plugin.host import run
    from amd_plugin.host.running.run_folder import finished, write_json
    from amd_plugin.plugins import get_plugin_manager
    from amd_plugin.recipe.loading import load

    plugins = get_plugin_manager()
    own = (f"train.seed={seed}", "train.trackers=[]")
    loaded = load(recipe, plugins, (*overrides, *arm.overrides, *own), arm.objective)
    folder = output / "arms" / arm.name / f"seed-{seed}"
    evaluation = finished(folder, loaded)
    if evaluation is None:
        start, spent = time.process_time(), _seconds(output, arm.name, seed) or 0.0
        try:
            evaluation = run.train(loaded, plugins, folder, resume="auto")
        finally:
            if folder.is_dir():
                write_json(folder / "cost.json", {"processor_seconds": spent + time.process_time() - start})
    return evaluation


def _teacher(recipe: str, arm: None, seed: int, overrides: tuple[str, ...], output: Path) -> dict[str, float]:
    """In a worker: makes the seed's teacher, and says how good it is itself."""
    from amd_plugin.host.evaluation.held_out import mean_scores
    from amd_plugin.models.backbone import load_backbone
    from amd_plugin.models.teacher_samples import teacher_samples
    from amd_plugin.plugins import get_plugin_manager
    from amd_plugin.recipe.loading import load
    from amd_plugin.rewards.reward_set import RewardSet

    plugins = get_plugin_manager()
    loaded = load(recipe, plugins, overrides)
    config, task = loaded.config, loaded.task
    if task.num_classes:
        task.classifier()
    backbone = load_backbone(config.model, task, seed, plugins.families())
    count, batch = config.evaluate.samples, config.evaluate.batch_size
    samples, labels = teacher_samples(backbone, config.model, task, seed, count, 1.0, batch)
    media = backbone.decode_in_parts(samples, batch)
    judges = RewardSet([reward.here for reward in config.evaluate.rewards], plugins, task)
    return task.evaluate(media, labels, samples) | mean_scores(judges, task, media, labels, batch)


def _seconds(output: Path, arm: str, seed: int) -> float | None:
    """Processor time of a run, its evaluations included: cost, to be shown beside quality. None where it is not known."""
    cost = output / "arms" / arm / f"seed-{seed}" / "cost.json"
    return float(json.loads(cost.read_text())["processor_seconds"]) if cost.is_file() else None


def _start_worker(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    """Ends this worker when the process that started it is gone, with time for a run to write its checkpoint."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(30)
        os._exit(143)


def _directions(task: str) -> dict[str, str]:
    from amd_plugin.tasks import TASKS

    return dict(TASKS[task].metrics)
