"""`amd-plugin evaluate`: a run's student, drawn, written, measured, and held against real data and its teacher.

    checkpoint -> student (no optimizers) -> latents on disk, group by group
               -> decoded once: rewards, features, pixels -> numbers; media files -> dropped
               -> intervals, evaluation.json, evaluation.md, plots

The folder holds ``drawn.json`` (which weights), ``latents/`` (drawn once; an interrupted evaluation goes on), the samples in
``samples/`` or in a benchmark's own layout, and the results.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from rich.console import Console
from torch import Tensor

from amd_plugin.errors import InputError
from amd_plugin.evaluate.students import samples as draw
from amd_plugin.evaluate.students import suite as suites
from amd_plugin.evaluate.students import summary
from amd_plugin.evaluate.students.features import VisionFeatures
from amd_plugin.evaluate.students.measure import Instruments, Measured, measure, real_features
from amd_plugin.evaluate.students.media import check_mp4, write
from amd_plugin.evaluate.students.results import Evaluation, write_results
from amd_plugin.evaluate.students.suite import Form, Group, Suite
from amd_plugin.host.running.run_folder import write_json
from amd_plugin.host.student.load import Student, load_student
from amd_plugin.plugins import PluginManager
from amd_plugin.rewards.builtin.clip import ClipReward
from amd_plugin.rewards.reward_set import RewardSet

SAMPLE_FOLDERS = ("samples", *suites.REPEATS)


def evaluate(
    run: Path, plugins: PluginManager, output: Path | None = None, *, at: str | None = None, weights: str = "ema",
    samples: int | None = None, prompts: Path | None = None, form: Form = "auto", teacher: bool = True,
    console: Console | None = None,
) -> Evaluation:  # fmt: skip
    """Evaluates a checkpoint of the run in `run`, whether it is finished or not.

    Args:
        output: the folder to write; by default ``evaluation`` in the run's.
        at: a step, or a checkpoint's folder; by default the newest checkpoint.
        weights: ``ema``, the student's average, or ``raw``.
        samples: how many; by default `evaluate.samples`, or all that a prompt file asks for.
        prompts: a prompt file to ask for instead of the run's own prompts or classes; `form` forces its format.
        teacher: draw the teacher's samples too, from the same noise, to compare with.
        console: for progress; quiet where None.

    Raises:
        InputError: for whatever cannot be evaluated; no earlier result was touched.
        MissingDependency: if videos have to be written that nothing here can write.
    """
    student = load_student(run, plugins, at)
    config, task = student.recipe.config, student.task
    accelerator = _accelerator(config)
    device = accelerator.device
    suite = _suite(student, samples, prompts, form)
    tools = _instruments(student, plugins, suite)
    draw.prepare(student, suite, device)
    folder = _open(output or run / "evaluation", student, weights, asked=output is not None)
    say = (lambda text: None) if console is None else lambda text: console.print(text, highlight=False, markup=False)

    batch, media = config.evaluate.batch_size, folder / (suite.form if suite.form in suites.REPEATS else "samples")
    keep = _writer(media, suite, config.evaluate.fps)
    measured: dict[str, Measured] = {}
    for who in ("student", "teacher") if teacher else ("student",):
        make = draw.student_sampler if who == "student" else draw.teacher_sampler
        latents = folder / "latents" / who
        with student.with_weights(weights):
            groups = draw.draw(latents, student, suite, make(student, accelerator), device, batch)
            told = _told(groups, suite, who, say)
            load = lambda group, where=latents: draw.drawn(where, group)  # noqa: E731
            measured[who] = measure(
                told, load, task, student.backbone, device, tools, batch, keep if who == "student" else None
            )
    reference, of_what = _reference(student, suite, tools, measured, device)
    made, theirs = measured["student"], measured.get("teacher")
    found = summary.rows(made, theirs, reference, config.train.seed, by_prompt=not _classes(student, suite))
    result = Evaluation(
        run=run, student=student, weights=weights, suite=suite, rows=found, reference=of_what, tools=tools,
        measured=measured, latents=folder / "latents", trained_on=_trained_on(student, plugins),
    )  # fmt: skip
    write_results(result, folder)
    return result


def _accelerator(config: Any) -> Accelerator:
    cpu = config.distributed.device == "cpu" or not torch.cuda.is_available()
    return Accelerator(cpu=cpu, mixed_precision=config.distributed.mixed_precision)


def _suite(student: Student, samples: int | None, prompts: Path | None, form: Form) -> Suite:
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
            what = "videos" if video else "pictures"
            raise InputError(f"--prompts {prompts}: {suite.form} is a benchmark of {what}, and this run's student makes none")
        if video:
            check_mp4()
    if suite.size <= summary.K:
        what = f"nearest neighbours and covariances need at least {summary.K + 1} samples, got {suite.size}"
        where = f"--prompts {prompts}" if prompts and samples is None else f"--samples {samples or config.evaluate.samples}"
        raise InputError(f"{where}: {what}. Ask for more")
    return suite


def _frames(student: Student) -> int:
    return 1 if student.backbone.size is None else student.backbone.size.frames


def _classes(student: Student, suite: Suite) -> bool:
    return suite.form == "task" and student.task.num_classes > 0


def _instruments(student: Student, plugins: PluginManager, suite: Suite) -> Instruments:
    config, task = student.recipe.config, student.task
    rewards = {
        "reward": RewardSet([reward.here for reward in config.rewards], plugins, task),
        "held_out": RewardSet([reward.here for reward in config.evaluate.rewards], plugins, task),
    }
    features = config.evaluate.features
    if features is None:
        return Instruments(rewards, task.judge())
    if len(student.backbone.sample_shape) < 3:
        raise InputError(f"evaluate.features: is for pictures and videos, and samples of {task.name} are points. Leave it out")
    vision, alignment = VisionFeatures(features), None
    trained = {reward.options.get("path") for reward in config.rewards}
    if vision.kind == "clip" and features.path not in trained:
        alignment = ClipReward(features.path, None, features.revision, features.dtype, batch_size=features.batch_size)
    return Instruments(rewards, task.judge(), vision, alignment)


def _trained_on(student: Student, plugins: PluginManager) -> list[str]:
    """Names of the rewards the objective listened to; the others are as good as held out."""
    recipe = student.recipe
    objective = plugins.make_objective(recipe.config.objective.name, recipe.objective_options)
    return [reward.name for reward in recipe.config.rewards] if objective.needs_reward else []


def _open(folder: Path, student: Student, weights: str, *, asked: bool) -> Path:
    """The folder, emptied of what was drawn with other weights; raises InputError where it is somebody else's."""
    digest = hashlib.sha256()
    with (student.checkpoint / f"{'ema' if weights == 'ema' else 'student'}.safetensors").open("rb") as file:
        while block := file.read(1 << 24):
            digest.update(block)
    drawn = {"step": student.step, "weights": weights, "sha256": digest.hexdigest()}
    try:
        old = json.loads((folder / "drawn.json").read_text()) if (folder / "drawn.json").is_file() else None
    except (OSError, ValueError) as error:
        raise InputError(f"{folder / 'drawn.json'}: cannot be read: {error}. Choose another folder with --output") from error
    if folder.exists() and (not folder.is_dir() or (old is None and any(folder.iterdir()))):
        raise InputError(f"--output {folder}: is not empty and holds no evaluation. Choose another folder")
    if old not in (None, drawn):
        if asked:
            what = f"holds an evaluation of step {old.get('step')} ({old.get('weights')}), other weights than asked for"
            raise InputError(f"--output {folder}: {what}. Choose another folder")
        shutil.rmtree(folder / "latents", ignore_errors=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Results of an earlier evaluation are not those of this one, should it be interrupted.
        (folder / "evaluation.json").unlink(missing_ok=True)
        write_json(folder / "drawn.json", drawn)
    except OSError as error:
        raise InputError(f"--output {folder}: cannot be written: {error}") from error
    return folder


def _writer(folder: Path, suite: Suite, fps: int) -> Callable[[Group, int, Tensor], None]:
    """Writes samples where the suite wants them, into a folder that holds nothing else: scorers take all they find."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, text in suite.texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)

    def keep(group: Group, number: int, media: Tensor) -> None:
        if number < len(group.files) and media.dim() >= 3:
            write(folder / group.files[number], media, fps)

    return keep


def _told(groups: Iterator[Group], suite: Suite, who: str, say: Callable[[str], None]) -> Iterator[Group]:
    total, step = len(suite.groups), max(1, len(suite.groups) // 10)
    for done, group in enumerate(groups, 1):
        yield group
        if done % step == 0 or done == total:
            say(f"{who}: {done}/{total} prompts or classes")


def _reference(
    student: Student, suite: Suite, tools: Instruments, measured: dict[str, Measured], device: torch.device
) -> tuple[Tensor | None, str]:
    """(features to compare with, what they are of); None, and why, where there are none."""
    if tools.judge is None and tools.vision is None:
        return None, "nothing: no evaluate.features are named, so there are no distances between sets"
    if suite.form == "task" and student.task.has_samples:
        count = max(2 * suite.size, 200)
        real = real_features(student.task, student.backbone, count, tools, device, student.recipe.config.train.seed)
        if len(real) > summary.K:
            return real, f"{len(real)} real samples"
    if "teacher" in measured:
        return measured["teacher"].features, f"{suite.size} samples of the teacher"
    return None, "nothing: there are no real samples for these prompts, and --no-teacher was given"
