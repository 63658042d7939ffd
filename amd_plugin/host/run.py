"""A whole run: folder, loop, checkpoints, evaluation, export. `Trainer` knows how to train; this knows when to do what.

The folder holds `config.yaml` (resolved), `run.json`, `metrics.jsonl`, `checkpoints/`, `samples/`, `student/`, and
`evaluation.json` once the run is complete.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import InitProcessGroupKwargs, LoggerType, broadcast_object_list
from rich.console import Console
from safetensors.torch import save_file
from torch import Tensor

from amd_plugin.errors import AmdPluginError, InputError, MissingDependency, RunError, did_you_mean
from amd_plugin.host.evaluation.decode_once import decoded_once
from amd_plugin.host.evaluation.held_out import mean_scores
from amd_plugin.host.evaluation.pictures import save_samples
from amd_plugin.host.running.preemption import Preempted, Preemption
from amd_plugin.host.running.rank_probe import RollCall
from amd_plugin.host.running.run_folder import find_checkpoint, open_folder, write_json
from amd_plugin.host.running.run_log import RunLog
from amd_plugin.host.running.run_state import rescue, restore, save
from amd_plugin.host.student.export import export, export_run
from amd_plugin.host.training.trainer import Trainer
from amd_plugin.plugins import PluginManager
from amd_plugin.recipe.loading import Recipe

log = logging.getLogger(__name__)


def train(
    recipe: Recipe, plugins: PluginManager, output: Path, resume: str | None = None, console: Console | None = None
) -> dict[str, float]:
    """Trains, evaluates and exports; or continues a run that was stopped.

    Args:
        recipe: what to do.
        plugins: where objectives, rewards and hooks come from.
        output: the run's folder; must be new, unless `resume` is given.
        resume: ``auto`` (the newest complete checkpoint, or from the start), a checkpoint's folder, or None.
        console: for progress; quiet where None.

    Returns:
        Held-out metrics of the averaged student.

    Raises:
        InputError: for a folder or checkpoint that does not fit; nothing was changed.
        RunError: when training had to stop; a checkpoint was written first.
        Preempted: after Ctrl-C or SIGTERM, likewise.
    """
    accelerator = _accelerator(recipe, output)
    start = _on_main(accelerator, lambda: find_checkpoint(output, recipe, resume))
    if console is not None:
        console.print("preparing teacher and rewards; what has to be trained for them is kept for later runs", highlight=False)
    roll_call = RollCall(accelerator, recipe.config.distributed.timeout)
    with _preparing(roll_call):
        trainer = Trainer(recipe, plugins, accelerator)
    try:
        return _run(trainer, start, output, console, roll_call)
    finally:
        if trainer.rewards is not None:
            trainer.rewards.close()


def _run(trainer: Trainer, start: Path | None, output: Path, console: Console | None, roll_call: RollCall) -> dict[str, float]:
    recipe, accelerator = trainer.recipe, trainer.accelerator
    with _preparing(roll_call):
        last_metrics = {} if start is None else restore(trainer, start)
    # Only now, when nothing about the input can be wrong any more, does the run leave a trace on disk.
    _on_main(accelerator, lambda: open_folder(output, recipe))
    if recipe.config.train.trackers:
        accelerator.init_trackers("tracker")
    run_log = RunLog(output / "metrics.jsonl", trainer.step, recipe.config.train.max_steps, accelerator, console)
    run_log.last = last_metrics
    try:
        evaluation = _loop(trainer, run_log, output, roll_call)
    finally:
        run_log.close()
        accelerator.end_training()
    return evaluation


@contextmanager
def _preparing(roll_call: RollCall) -> Iterator[None]:
    """Names the process that fails the others before there is anything to save."""
    try:
        yield
    except AmdPluginError:
        raise
    except Exception as error:
        if absent := roll_call.absent(error):
            raise RunError(f"{absent}{type(error).__name__}: {error}\nStopped before the first step") from error
        raise


def dry_run(recipe: Recipe, plugins: PluginManager, output: Path, resume: str | None = None) -> dict[str, Any]:
    """Builds everything a run needs, the teacher excepted where it is not cached yet, and says what would happen.

    Raises:
        InputError: for whatever would stop the run before its first step; of a known model on a hub that does not answer, as
            far as its configs say.
    """
    from amd_plugin.models import backbone
    from amd_plugin.models import shipped_configs as known
    from amd_plugin.schedule import Ladder
    from amd_plugin.tasks import TASKS

    config = recipe.config
    start = find_checkpoint(output, recipe, resume)
    task = TASKS[config.data.task](**config.data.options)
    model, source = known.with_configs(config.model)
    network, scheduler = backbone.outline(model, task, config.train.seed, plugins.families())
    return {
        "recipe": recipe.name,
        "objective": config.objective.name,
        "options": recipe.objective_options,
        "uses rewards": recipe.objective.needs.reward,
        "model": source,
        "network": f"{type(network).__name__}, {sum(p.numel() for p in network.parameters()):,} parameters",
        "visited timesteps": Ladder(scheduler, config.model.student_steps).timesteps.tolist(),
        "student updates": config.train.max_steps,
        "fake-score updates": config.train.max_steps * config.train.fake_updates,
        "starts from": str(start) if start else "the teacher",
        "output": str(output),
    }


def _loop(trainer: Trainer, run_log: RunLog, output: Path, roll_call: RollCall) -> dict[str, float]:
    train, hook = trainer.train, trainer.plugins.hook
    evaluation: dict[str, float] = {}
    with Preemption() as preemption:
        try:
            while trainer.step < train.max_steps:
                factors = hook.distill_strength_schedule(step=trainer.step, max_steps=train.max_steps, metrics=run_log.last)
                run_log.add(trainer.cycle(math.prod(factors)))
                step, last = trainer.step, trainer.step == train.max_steps
                if step % train.log_every == 0 or last:
                    metrics = run_log.write(step)
                    if trainer.accelerator.is_main_process:
                        hook.distill_on_step(step=step, metrics=metrics)
                if last or (train.evaluate_every and step % train.evaluate_every == 0):
                    evaluation = _evaluate(trainer, run_log, output)
                if last or (train.checkpoint_every and step % train.checkpoint_every == 0):
                    save(trainer, run_log, output)
                if signum := preemption.requested(trainer.accelerator):
                    where = save(trainer, run_log, output)
                    again = "run the same command with --resume auto to go on"
                    raise Preempted(f"stopped after step {step}; saved {where}; {again}", signum)
        except Preempted:
            raise
        except Exception as error:
            kind = "" if isinstance(error, AmdPluginError) else f"{type(error).__name__}: "
            what = f"{roll_call.absent(error)}{kind}{error}"
            saved = rescue(trainer, run_log, output, roll_call)
            raise RunError(f"{what}\nStopped in step {trainer.step + 1}; {saved}") from error
    evaluation = evaluation or _evaluate(trainer, run_log, output)
    if trainer.accelerator.is_main_process:
        recipe = trainer.recipe
        if trainer.student_is_sharded:
            export_run(output, trainer.plugins)  # from the checkpoint just written, which is whole
        else:
            with trainer.ema.applied():
                export(output / "student", trainer.student, trainer.backbone, recipe, run=output, step=trainer.step)
        hook.distill_export(path=output / "student", options=recipe.as_dict())
        write_json(output / "evaluation.json", evaluation)
    trainer.accelerator.wait_for_everyone()
    return evaluation


def _evaluate(trainer: Trainer, run_log: RunLog, output: Path) -> dict[str, float]:
    """Held-out metrics and a picture of the averaged student; the main process works, the others get the result.

    Raises:
        RunError: on every process, where the evaluation fails, or a reward looks hacked and the recipe says to stop then.
    """
    result: list[Any] = [{}, "", ""]
    main, cause = trainer.accelerator.is_main_process, None
    labels = trainer.task.balanced_labels(trainer.recipe.config.evaluate.samples)
    # All processes have to call what is sharded over them.
    samples = trainer.sample(labels, "evaluation") if main or trainer.student_is_sharded else torch.empty(0)
    if main:
        try:
            result[:2] = _judge(trainer, run_log, output, samples, labels)
        except Exception as error:  # told to all processes first: a lone exception would leave the others waiting
            result[2], cause = f"{type(error).__name__}: {error}", error
    broadcast_object_list(result)
    if result[2]:
        raise RunError(f"the held-out evaluation failed: {result[2]}") from cause
    if result[1] and trainer.train.stop_on_hacking:
        raise RunError(f"{result[1]}\nTo go on all the same, set train.stop_on_hacking to false")
    evaluation: dict[str, float] = result[0]
    return evaluation


def _judge(trainer: Trainer, run_log: RunLog, output: Path, samples: Tensor, labels: Tensor) -> tuple[dict[str, float], str]:
    """(held-out metrics, what to say about a reward that looks hacked) of `samples`, written down and drawn."""
    config, task = trainer.recipe.config, trainer.task
    with decoded_once(task, samples, config.evaluate.batch_size) as media:
        evaluation: dict[str, float] = task.evaluate(samples, labels)
        evaluation |= mean_scores(trainer.held_out, task, samples, labels, config.evaluate.batch_size)
        row = {f"held_out/{name}": value for name, value in evaluation.items()}
        if trainer.scoring is not None:
            judge = task.judge()
            row |= trainer.scoring.evaluate(media, labels, None if judge is None else judge.fits(media, labels))
        title = f"{config.objective.name}, step {trainer.step}"
        save_samples(output / "samples" / f"step-{trainer.step:06d}", task, title, samples, labels)
    hacked = _hacking(trainer, row)
    run_log.record(trainer.step, {**row, "hacking_alarm": float(bool(hacked))} if trainer.scoring else row)
    save_file({"samples": samples.contiguous(), "labels": labels}, output / "samples" / "latest.safetensors")
    return evaluation, hacked


def _hacking(trainer: Trainer, row: dict[str, float]) -> str:
    """What to say about a reward that looks hacked after the evaluation `row`; empty if none does."""
    known, finding = trainer.alarm.ringing, trainer.alarm.add({"step": trainer.step, **row})
    if finding is None:
        return ""
    levers = [f"objective.{name} (now {value})" for name, value in trainer.objective.reward_levers.items() if value]
    advice = f"Lower {' or '.join(levers) or 'the strength of the objective'}, or give it less weight beside another reward"
    said = f"{finding}. {advice}; look at the samples first"
    if not known:
        log.warning("%s", said)
    return said


def _on_main(accelerator: Accelerator, what: Callable[[], Any]) -> Any:
    """The result of `what` on the main process, for all of them; its InputError likewise, so that all stop for one reason."""
    found: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            found[0] = what()
        except InputError as error:
            found[1] = str(error)
    broadcast_object_list(found)
    if found[1] is not None:
        raise InputError(found[1])
    return found[0]


def _accelerator(recipe: Recipe, output: Path) -> Accelerator:
    distributed, trackers = recipe.config.distributed, recipe.config.train.trackers
    cpu = distributed.device == "cpu" or not torch.cuda.is_available()
    launched = int(os.environ.get("WORLD_SIZE", 1))
    for wrapper in ("DEEPSPEED", "FSDP"):
        if os.environ.get(f"ACCELERATE_USE_{wrapper}", "false").lower() == "true":
            raise InputError(
                f"accelerate launch was told to use {wrapper}, which would wrap whatever is loaded. Launch without it; the "
                "recipe's distributed section says what is sharded"
            )
    how: dict[str, Any] = {"backend": "gloo"} if cpu else {}
    if distributed.timeout is not None:
        how["timeout"] = timedelta(seconds=distributed.timeout)
    handlers = [InitProcessGroupKwargs(**how)] if how and launched > 1 else []
    available = {str(tracker) for tracker in get_available_trackers()}
    for index, tracker in enumerate(trackers):
        if tracker not in LoggerType.list():
            hint = did_you_mean(tracker, LoggerType.list())
            raise InputError(f"train.trackers.{index}: unknown tracker, got '{tracker}'.{hint}")
        if tracker not in available:
            raise MissingDependency(f"train.trackers.{index}: the package of '{tracker}' is not installed")
    precision = distributed.mixed_precision
    try:
        accelerator = Accelerator(
            cpu=cpu, mixed_precision=precision, log_with=trackers or None, project_dir=str(output), kwargs_handlers=handlers
        )
    except ValueError as error:  # accelerate keeps the first settings of a process for all its life
        what = f"distributed.mixed_precision: accelerate refuses '{precision}': {error}"
        raise RunError(f"{what} Start runs with other settings in a process of their own") from error
    if accelerator.num_processes != launched:
        raise RunError(f"accelerate sees {accelerator.num_processes} processes where the launcher started {launched}")
    return accelerator
