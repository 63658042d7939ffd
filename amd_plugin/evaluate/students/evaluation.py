"""`amd-plugin evaluate`: samples of a run's student, compared with real data and with its teacher.

    checkpoint -> student (no optimizers) -> latents on disk, group by group
               -> decoded once: rewards, features, pixels -> numbers; media files -> dropped
               -> intervals, evaluation.json, evaluation.md, plots

The folder holds ``drawn.json`` (the weights), ``latents/`` (drawn once, so that an interrupted evaluation can continue), the
samples in ``samples/`` or in a benchmark's own layout, and the results.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from glob import escape
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from rich.console import Console
from torch import Tensor

from amd_plugin.atomic import check_inside, is_draft, sweep, write_text
from amd_plugin.busy import busy
from amd_plugin.choices import PromptFormat, Weights
from amd_plugin.config import RecipeConfig
from amd_plugin.disk import output_refused
from amd_plugin.errors import InputError
from amd_plugin.evaluate.students import suite as suites
from amd_plugin.evaluate.students import summary
from amd_plugin.evaluate.students.features import VisionFeatures
from amd_plugin.evaluate.students.measure import Measurements, MetricModels, measure, real_features
from amd_plugin.evaluate.students.media import check_mp4, write
from amd_plugin.evaluate.students.results import Evaluation, write_results
from amd_plugin.evaluate.students.samples import draw_samples, load_samples, prepare, student_sampler, teacher_sampler
from amd_plugin.evaluate.students.suite import Group, Suite
from amd_plugin.host.running.folder_lock import FolderLock, is_lock
from amd_plugin.host.running.run_folder import write_json
from amd_plugin.host.student.load import Student, load_student
from amd_plugin.json_files import read
from amd_plugin.plugins import PluginManager
from amd_plugin.rewards.builtin.clip import ClipReward
from amd_plugin.rewards.reward_set import RewardSet
from amd_plugin.terminal import tell
from amd_plugin.threads import one_thread

PAIRS = 6  # prompts of which the report shows teacher beside student


def evaluate(
    run: Path, plugins: PluginManager, output: Path | None = None, *, at: str | None = None, weights: Weights = "ema",
    samples: int | None = None, prompts: Path | None = None, form: PromptFormat = "auto", teacher: bool = True,
    console: Console | None = None,
) -> Evaluation:  # fmt: skip
    """Evaluates a checkpoint of the run in `run`, whether the run is finished or not.

    Args:
        run: folder of the run.
        plugins: plugin manager for the run's rewards and model families.
        output: folder to write; by default ``evaluation`` in the run's folder.
        at: step or folder of the checkpoint; by default the newest checkpoint.
        weights: ``ema`` for the moving average of the student's weights, ``raw`` for the weights as trained.
        samples: number of samples; by default `evaluate.samples`, or all that the prompt file asks for.
        prompts: prompt file to use instead of the run's own prompts or classes.
        form: format of the prompt file; ``auto`` detects it.
        teacher: whether samples of the teacher, from the same noise, are measured too.
        console: console for progress; quiet where None.

    Raises:
        InputError: for anything that cannot be evaluated; earlier results stay as they are then.
        MissingDependency: if videos have to be written and no encoder is installed.
    """
    if prompts is not None:  # what is wrong with the file is said before networks are loaded, which may take minutes
        suites.read(prompts, form)  # without `samples`: how many a prompt needs is in the run's recipe
    with busy(console, "loading the student and its teacher"):
        student = load_student(run, plugins, at)
    suite, asked = _suite(student, samples, prompts, form), samples or student.recipe.config.evaluate.samples
    if prompts is None and suite.size != asked:
        tell(console, f"{suite.size} samples instead of {asked}, equally many of each class or prompt")
    # As in training: networks made here are too small to share out, and a result must not depend on the cores that are free.
    with one_thread(student.recipe.config.model.network is not None):
        return _evaluated(run, student, suite, plugins, output, weights, teacher, console)


def _evaluated(
    run: Path, student: Student, suite: Suite, plugins: PluginManager, output: Path | None, weights: Weights, teacher: bool,
    console: Console | None,
) -> Evaluation:  # fmt: skip
    config, task = student.recipe.config, student.task
    accelerator = _accelerator(config)
    device = accelerator.device
    with busy(console, "preparing prompts, rewards and metrics"):
        metric_models = _metric_models(student, plugins, device)
        prepare(student, suite, device)

    if output is None:
        check_inside(run / "evaluation", run)
    with _opened(output or run / "evaluation", student, weights, replace=output is None) as (folder, drawn):
        batch, media = config.evaluate.batch_size, folder / (suite.form if suite.form in suites.REPEATS else "samples")
        writers = {"student": _sample_writer(media, suite, config.evaluate.fps)}
        if suite.form not in suites.REPEATS:  # a benchmark's folder holds what its scorer reads, and nothing else
            writers["teacher"] = _sample_writer(folder / "teacher", suite, config.evaluate.fps)
        measurements: dict[str, Measurements] = {}
        for role in ("student", "teacher") if teacher else ("student",):
            make_sampler = student_sampler if role == "student" else teacher_sampler
            latents = folder / "latents" / role
            with busy(console, f"drawing and measuring samples of the {role}"), student.with_weights(weights):
                groups = draw_samples(latents, student, drawn, suite, make_sampler(student, accelerator), device, batch)
                measurements[role] = measure(
                    _with_progress(groups, suite, role, partial(tell, console)), partial(load_samples, latents), task,
                    student.backbone, device, metric_models, batch, writers.get(role),
                )  # fmt: skip
        with busy(console, "computing distances and intervals"):
            reference, described = _reference(student, suite, metric_models, measurements, device)
            rows = summary.rows(
                measurements["student"], measurements.get("teacher"), reference, config.train.seed,
                by_prompt=not suite.has_all_classes(task),
            )  # fmt: skip
            result = Evaluation(
                run=run, student=student, weights=weights, suite=suite, rows=rows, reference=described,
                metric_models=metric_models, measurements=measurements, latents=folder / "latents",
                trained_on=_trained_on(student),
            )  # fmt: skip
            write_results(result, folder)
            _write_pairs(folder, suite)
        return result


def _write_pairs(folder: Path, suite: Suite) -> None:
    """Names the pictures of teacher and student that belong together, for the report."""
    rows = []
    for group in suite.groups[:PAIRS]:
        found = {role: next(folder.glob(f"{place}/{escape(group.files[0])}*"), None) if group.files else None
                 for role, place in (("student", "samples"), ("teacher", "teacher"))}  # fmt: skip
        if all(found.values()):
            files = {role: str(path.relative_to(folder)) for role, path in found.items() if path is not None}
            rows.append({"prompt": group.prompt, **files})
    write_json(folder / "pairs.json", rows)


def _accelerator(config: RecipeConfig) -> Accelerator:
    cpu = config.distributed.device == "cpu" or not torch.cuda.is_available()
    return Accelerator(cpu=cpu, mixed_precision=config.distributed.mixed_precision)


def _suite(student: Student, samples: int | None, prompts: Path | None, form: PromptFormat) -> Suite:
    """The suite to evaluate on; raises InputError for one that does not fit the student, or is too small for the metrics."""
    config, task = student.recipe.config, student.task
    if prompts is None:
        if form != "auto":
            raise InputError(f"--format {form}: is of a prompt file; name one with --prompts")
        suite = suites.of_task(task, samples or config.evaluate.samples)
    else:
        suite = suites.read(prompts, form, samples=samples, per_prompt=config.data.options.get("per_prompt", 4))
    if suite.form in suites.REPEATS:
        video = suite.form == "vbench"
        if len(task.sample_shape or student.backbone.sample_shape) < 3 or video != (_frames(student) > 1):
            media = "videos" if video else "pictures"
            raise InputError(f"--prompts {prompts}: {suite.form} is a benchmark of {media}, and this run's student makes none")
        if video:
            check_mp4()
    if suite.size <= summary.K:
        asked = samples or config.evaluate.samples
        shared = "" if suite.size == asked or prompts else f", of which {suite.size} share out evenly over classes or prompts"
        message = f"nearest neighbours and covariances need at least {summary.K + 1} samples, got {asked}{shared}"
        option = f"--prompts {prompts}" if prompts and samples is None else f"--samples {samples or config.evaluate.samples}"
        raise InputError(f"{option}: {message}. Ask for more")
    return suite


def _frames(student: Student) -> int:
    return 1 if student.backbone.size is None else student.backbone.size.frames


def _metric_models(student: Student, plugins: PluginManager, device: torch.device) -> MetricModels:
    """The recipe's rewards, the task's judge, and the vision model of `evaluate.features`."""
    config, task = student.recipe.config, student.task
    rewards = {
        "reward": RewardSet([reward.here for reward in config.rewards], plugins, task, device=device),
        "held_out": RewardSet([reward.here for reward in config.evaluate.rewards], plugins, task, device=device),
    }
    features = config.evaluate.features
    if features is None:
        return MetricModels(rewards, task.judge())
    if len(student.backbone.sample_shape) < 3:
        raise InputError(f"evaluate.features: is for pictures and videos, and samples of {task.name} are points. Leave it out")
    vision, alignment = VisionFeatures(features), None
    trained = {reward.options.get("path") for reward in config.rewards}
    if vision.kind == "clip" and features.path not in trained:
        alignment = ClipReward(features.path, None, features.revision, features.dtype, batch_size=features.batch_size)
    return MetricModels(rewards, task.judge(), vision, alignment)


def _trained_on(student: Student) -> list[str]:
    """Names of the rewards that the objective used; an objective without rewards was trained on none of them."""
    recipe = student.recipe
    return [reward.name for reward in recipe.config.rewards] if recipe.objective.needs.reward else []


@contextmanager
def _opened(folder: Path, student: Student, weights: Weights, *, replace: bool) -> Iterator[tuple[Path, str]]:
    """(folder, checksum of the weights) of an evaluation; inside, no other one works in the folder.

    Where `replace` allows it, samples of other weights that are there are dropped.

    Raises:
        InputError: if the folder holds something else, samples of other weights without `replace`, another process works in
            it, or it cannot be written.
    """
    digest = hashlib.sha256()
    with (student.checkpoint / f"{'ema' if weights == 'ema' else 'student'}.safetensors").open("rb") as file:
        while block := file.read(1 << 24):
            digest.update(block)
    drawn = {"step": student.step, "weights": weights, "sha256": digest.hexdigest()}
    _drawn(folder, drawn, replace=replace)
    lock = FolderLock(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        raise output_refused(error) from error
    try:
        sweep(folder, alone=True)
        if _drawn(folder, drawn, replace=replace) not in (None, drawn):  # another evaluation may have ended there meanwhile
            shutil.rmtree(folder / "latents", ignore_errors=True)
        try:
            # If this evaluation is interrupted, results of an earlier one must not pass for its results.
            (folder / "evaluation.json").unlink(missing_ok=True)
            write_json(folder / "drawn.json", drawn)
        except OSError as error:
            raise output_refused(error) from error
        yield folder, digest.hexdigest()
    finally:
        lock.release()


def _drawn(folder: Path, wanted: dict[str, Any], *, replace: bool) -> dict[str, Any] | None:
    """Of which weights the samples in an evaluation's folder are; None where there is none yet.

    Raises:
        InputError: if the folder holds something else, or samples of other weights than `wanted` without `replace`.
    """
    file = folder / "drawn.json"
    old = read(file, dict[str, Any], "Choose another folder with --output") if file.is_file() else None
    if folder.exists() and (not folder.is_dir() or (old is None and not all(map(_is_beginning, folder.iterdir())))):
        raise InputError(f"--output {folder}: is not empty and holds no evaluation. Choose another folder")
    if old not in (None, wanted) and not replace:
        message = f"holds an evaluation of step {old.get('step')} ({old.get('weights')}), other weights than asked for"
        raise InputError(f"--output {folder}: {message}. Choose another folder")
    return old


def _is_beginning(entry: Path) -> bool:
    """Whether an evaluation that was killed before it had a drawn.json may have left this."""
    return is_lock(entry) or is_draft(entry)


def _sample_writer(folder: Path, suite: Suite, fps: int) -> Callable[[Group, int, Tensor], None]:
    """A function that writes samples to the suite's files. The folder is emptied first, since scorers read every file."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, text in suite.texts.items():
        write_text(folder / name, text)

    def write_sample(group: Group, number: int, media: Tensor) -> None:
        if number < len(group.files) and media.dim() >= 3:
            write(folder / group.files[number], media, fps)

    return write_sample


def _with_progress(groups: Iterator[Group], suite: Suite, role: str, say: Callable[[str], None]) -> Iterator[Group]:
    """The same groups, with about ten lines of progress."""
    total, step = len(suite.groups), max(1, len(suite.groups) // 10)
    for done, group in enumerate(groups, 1):
        yield group
        if done % step == 0 or done == total:
            say(f"{role}: {done}/{total} prompts or classes")


def _reference(
    student: Student, suite: Suite, metric_models: MetricModels, measurements: dict[str, Measurements], device: torch.device
) -> tuple[Tensor | None, str]:
    """(features [M, D] of the reference set, description of the set); (None, reason) where there is no reference set."""
    if metric_models.features is None:
        return None, "nothing: no evaluate.features are named, so there are no distances between sets"
    if suite.form == "task" and student.task.has_samples:
        count = max(2 * suite.size, 200)
        real = real_features(student.task, student.backbone, count, metric_models, device, student.recipe.config.train.seed)
        if len(real) > summary.K:
            return real, f"{len(real)} real samples"
    if "teacher" in measurements:
        return measurements["teacher"].features, f"{suite.size} samples of the teacher"
    return None, "nothing: there are no real samples for these prompts, and --no-teacher was given"
