"""A whole run: folder, training loop, checkpoints, evaluation, export. `Trainer` does a step; this decides what happens when.

The folder holds `config.yaml` (resolved), `run.json`, `metrics.jsonl`, `checkpoints/`, `samples/`, `student/`, and
`evaluation.json` once the run is complete.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from accelerate import Accelerator
from rich.console import Console

from amd_plugin import disk, plugin_files
from amd_plugin.busy import busy
from amd_plugin.errors import AmdPluginError, InputError, RunError, in_words
from amd_plugin.host.evaluation.evaluate import HeldOutEvaluation
from amd_plugin.host.evaluation.held_out import held_out_names
from amd_plugin.host.running.accelerator import end, make_accelerator, on_main
from amd_plugin.host.running.folder_kind import is_run
from amd_plugin.host.running.folder_lock import FolderLock
from amd_plugin.host.running.library_warnings import once_per_run
from amd_plugin.host.running.preemption import Preempted, Preemption
from amd_plugin.host.running.rank_probe import RankProbe
from amd_plugin.host.running.run_folder import find_checkpoint, open_folder, tidy, write_json
from amd_plugin.host.running.run_log import LogState, RunLog, cut
from amd_plugin.host.running.run_state import Progress, rescue, restore, save
from amd_plugin.host.running.trackers import Trackers
from amd_plugin.host.student.export import export, export_run, with_plugins
from amd_plugin.host.training.learner import learning_rates
from amd_plugin.host.training.trainer import Trainer
from amd_plugin.interrupts import Interrupted
from amd_plugin.plugins import PluginManager
from amd_plugin.recipe.loading import Recipe
from amd_plugin.tasks import check_installed
from amd_plugin.threads import one_thread


def train(
    recipe: Recipe, plugins: PluginManager, output: Path, resume: str | None = None, console: Console | None = None
) -> dict[str, float]:
    """Trains, evaluates and exports a student; or continues a run that was stopped.

    Args:
        recipe: a checked recipe.
        plugins: registry of objectives, rewards and hooks.
        output: the run's folder; must be new, unless `resume` is given.
        resume: ``auto`` (the newest complete checkpoint, or from the start), a checkpoint's folder, or None.
        console: console for progress; no output where None.

    Returns:
        Held-out metrics of the averaged student.

    Raises:
        InputError: for a folder or checkpoint that does not fit; nothing was changed.
        RunError: when training had to stop; a checkpoint was written first.
        Preempted: after Ctrl-C or SIGTERM; a checkpoint was written first.
    """
    # Networks made here are too small to share out, and a run must not depend on the cores that happen to be free.
    with one_thread(recipe.config.model.network is not None), once_per_run():
        return _train(recipe, plugins, output, resume, console)


def _train(
    recipe: Recipe, plugins: PluginManager, output: Path, resume: str | None, console: Console | None
) -> dict[str, float]:
    accelerator, lock = make_accelerator(recipe, output), FolderLock(output)
    probe = RankProbe(accelerator, recipe.config.distributed.timeout)

    def begin() -> Path | None:
        check_installed(recipe.task)
        if is_run(output):  # other folders are not touched before everything is checked
            lock.acquire()
            with suppress(OSError):  # what reads the folder says what is wrong with it
                tidy(output)
        return find_checkpoint(output, recipe, resume)

    try:
        with _naming_silent_ranks(probe), busy(console, "checking the run's folder", at_once=False):
            start = on_main(accelerator, begin)
        return _prepared(accelerator, recipe, plugins, output, start, lock, console, probe)
    finally:
        lock.release()


def _prepared(
    accelerator: Accelerator, recipe: Recipe, plugins: PluginManager, output: Path, start: Path | None, lock: FolderLock,
    console: Console | None, probe: RankProbe,
) -> dict[str, float]:  # fmt: skip
    waiting = "preparing teacher and rewards; what has to be trained or embedded for them is kept for later runs"
    with _naming_silent_ranks(probe), busy(console, waiting):
        trainer = Trainer(recipe, plugins, accelerator)
    try:
        return _run(trainer, start, output, lock, console, probe)
    finally:
        if trainer.rewards is not None:
            trainer.rewards.close()


def _run(
    trainer: Trainer, start: Path | None, output: Path, lock: FolderLock, console: Console | None, probe: RankProbe
) -> dict[str, float]:
    recipe, accelerator = trainer.recipe, trainer.accelerator
    log_state = LogState()
    of_another_run = start is not None and not start.resolve().is_relative_to(output.resolve())
    with _naming_silent_ranks(probe), busy(console, "loading held-out rewards and the checkpoint", at_once=False):
        evaluate = HeldOutEvaluation(trainer)
        if start is not None:
            log_state, evaluations, evaluated = restore(trainer, start)
            evaluate.alarm.load_state_dict(evaluations)
            if of_another_run:  # what it has written is not in this folder
                log_state.lines = None
            if evaluated is not None:
                evaluate.latest = (trainer.step, evaluated)
        # Only now, when nothing about the input can be wrong any more, does the run leave a trace on disk.
        on_main(accelerator, lambda: open_folder(output, recipe, lock, trainer.step, start if of_another_run else None))
        trainer.non_finite.run = output
        trackers = Trackers()
        on_main(accelerator, lambda: trackers.start(accelerator, recipe, output, trainer.step))
        max_steps, metrics = recipe.config.train.max_steps, output / "metrics.jsonl"
        log_state.lines = on_main(accelerator, lambda: cut(metrics, trainer.step, log_state.lines))
    run_log = RunLog(metrics, trainer.step, max_steps, accelerator, console, trackers, log_state)
    try:
        return _loop(trainer, evaluate, run_log, output, probe)
    finally:
        run_log.close()
        end(accelerator)


@contextmanager
def _naming_silent_ranks(probe: RankProbe, outcome: str = "Stopped before the first step") -> Iterator[None]:
    """Names the process that fails the others where there is nothing to save, before the first step or after the last.

    What others' code raises to end the program, such as SystemExit, ends the run in words too.
    """
    try:
        yield
    except (AmdPluginError, KeyboardInterrupt):
        raise
    except BaseException as error:
        unresponsive = probe.unresponsive_ranks(error)
        if unresponsive or not isinstance(error, Exception):
            raise RunError(f"{unresponsive}{in_words(error)}\n{outcome}") from error
        raise


def _loop(trainer: Trainer, evaluate: HeldOutEvaluation, run_log: RunLog, output: Path, probe: RankProbe) -> dict[str, float]:
    train, hook = trainer.train, trainer.plugins.hook
    with Preemption() as preemption:
        step = _Step(trainer, evaluate, run_log, output, preemption)
        try:
            if trainer.step:
                step.end()  # a run that was stopped may have left something undone
            elif train.fake_warmup:
                step.warm_up()
            while trainer.step < train.max_steps:
                factors = hook.distill_strength_schedule(step=trainer.step, max_steps=train.max_steps, metrics=run_log.last)
                run_log.add(trainer.cycle(trainer.agreed(math.prod(factors)), run_log.last))
                step.end()
        except (Preempted, Interrupted):
            raise
        except BaseException as error:  # SystemExit, CancelledError, ... of somebody else's code
            message = f"{probe.unresponsive_ranks(error)}{error if isinstance(error, AmdPluginError) else in_words(error)}"
            outcome = rescue(trainer, step.progress, output, run_log.settle, probe, partial=step.unfinished)
            raise RunError(f"{message}\nStopped in step {trainer.step + 1}; {outcome}{_then(error, output)}") from error
    saved = f"The last checkpoint is whole; go on with: {plugin_files.command('train', '--resume', output)}"
    with _naming_silent_ranks(probe, f"Stopped while the student was written. {saved}"), run_log.pausing("writing the student"):
        on_main(trainer.accelerator, lambda: _finish(trainer, evaluate.latest[1], output))
    return evaluate.latest[1]


def _then(error: BaseException, output: Path) -> str:
    """What to do about a disk that does not take a file; empty for another error."""
    refused = disk.refusal(error)
    return "" if refused is None else f"\n{disk.remedy(refused)}, then: {plugin_files.command('train', '--resume', output)}"


class _Step:
    """What is due between two cycles: a line of metrics, an evaluation, a checkpoint, the end by a signal."""

    def __init__(self, trainer: Trainer, evaluate: HeldOutEvaluation, run_log: RunLog, output: Path, preemption: Preemption):
        self._trainer, self._evaluate, self._log, self._output = trainer, evaluate, run_log, output
        self._preemption = preemption
        self._saved: int | None = trainer.step  # the step whose checkpoint holds all that was due after it

    def warm_up(self) -> None:
        """Trains the fake score before the first step. Call on every process.

        Raises:
            Preempted: after a signal; there is nothing to save yet.
        """
        trainer = self._trainer
        with self._log.pausing(f"training the fake score, {trainer.train.fake_warmup} updates before the student's first"):
            for done in trainer.warm_up():
                if signum := self._preemption.requested(trainer.accelerator):
                    begins = f"begin again with: {plugin_files.command('train', '--resume', self._output)}"
                    raise Preempted(f"stopped after {done} updates of the fake score, which are not saved; {begins}", signum)

    def end(self) -> None:
        """Does what is due after the trainer's step and not done yet. Call on every process.

        Raises:
            Preempted: after a signal; a checkpoint was written first.
        """
        trainer, train = self._trainer, self._trainer.train
        step, last = trainer.step, trainer.step == train.max_steps
        if step % train.log_every == 0 or last:
            metrics = self._log.write(step, learning_rates(step - 1, train, trainer.learners))
            if metrics and trainer.accelerator.is_main_process:
                trainer.plugins.hook.distill_on_step(step=step, metrics=metrics)
        if (last or (train.evaluate_every and step % train.evaluate_every == 0)) and self._evaluate.latest[0] != step:
            self._held_out()
        if step != self._saved and (last or (train.checkpoint_every and step % train.checkpoint_every == 0)):
            self._save()
        if signum := self._preemption.requested(trainer.accelerator):
            checkpoint = self._save()
            raise Preempted(
                f"stopped after step {step}; saved {checkpoint}; go on with: "
                f"{plugin_files.command('train', '--resume', self._output)}",
                signum,
            )

    @property
    def unfinished(self) -> bool:
        """Whether the trainer's state or the log's is of no step."""
        return self._trainer.mid_cycle or self._log.step != self._trainer.step

    def progress(self) -> Progress:
        """The rest of the state, see `RunLog.state`."""
        step, values = self._evaluate.latest
        evaluated = values if step == self._trainer.step else None
        return Progress(self._log.state(), self._evaluate.alarm.state_dict(), evaluated)

    def _held_out(self) -> None:
        try:
            with self._log.pausing("evaluating"):
                values = self._evaluate(self._log, self._output, self._preemption)
        except Interrupted:  # the run goes on with the evaluation
            return
        self._log.show_held_out({name: values[name] for name in held_out_names(self._trainer.recipe.config, values)})
        self._saved = None  # a checkpoint that a signal left before the evaluation does not hold it

    def _save(self) -> Path:
        with self._log.pausing("saving a checkpoint", at_once=False):
            path = save(self._trainer, self.progress(), self._output, self._log.settle)
        self._saved = self._trainer.step
        return path


def _finish(trainer: Trainer, evaluation: dict[str, float], output: Path) -> None:
    """Exports the student and writes `evaluation.json`. Call on the main process.

    Raises:
        RunError: where the disk does not take them.
    """
    try:
        write = partial(_export, trainer, output)
        write()
        with_plugins(output / "student", trainer.plugins, trainer.recipe, write)
        write_json(output / "evaluation.json", evaluation)
    except Exception as error:
        safe = f"Training is at its end, and the checkpoint of step {trainer.step} is whole"
        if isinstance(error, InputError):  # others' files came into the student's folder while the run went on
            raise RunError(f"{error}\n{safe}; then: {plugin_files.command('train', '--resume', output)}") from error
        if (refused := disk.refusal(error)) is None:
            raise
        raise RunError(f"{disk.in_words(refused)}\n{safe}{_then(error, output)}") from error


def _export(trainer: Trainer, output: Path) -> None:
    if trainer.student_is_sharded:
        export_run(output, trainer.plugins)  # from the checkpoint just written, which is whole
        return
    with trainer.ema.applied():
        export(output / "student", trainer.student, trainer.backbone, trainer.recipe, run=output, step=trainer.step)
