"""The held-out evaluation of a run: metrics, pictures, and the warning that a training reward looks hacked."""

from __future__ import annotations

import json
import logging
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from safetensors.torch import save_file
from torch import Tensor

from amd_plugin.atomic import replaced_file, write_text
from amd_plugin.data.prompts import ROWS
from amd_plugin.disk import dispensable
from amd_plugin.errors import RunError, in_words
from amd_plugin.host.evaluation.hacking_alarm import HackingAlarm, warning
from amd_plugin.host.evaluation.health import health, problems, real_saturation
from amd_plugin.host.evaluation.held_out import mean_scores
from amd_plugin.host.evaluation.pictures import PROMPTS, save_samples
from amd_plugin.host.running.accelerator import on_main
from amd_plugin.host.running.preemption import Preemption
from amd_plugin.host.running.run_log import RunLog
from amd_plugin.host.training.trainer import Trainer
from amd_plugin.interrupts import Interrupted
from amd_plugin.rewards.reward_set import RewardSet

log = logging.getLogger(__name__)

LESS = "training goes on, and the report shows less"


class HeldOutEvaluation:
    """Evaluates the averaged student of a run, again and again.

    Args:
        trainer: the run's trainer. Only the main process loads the held-out rewards.

    Attributes:
        rewards: rewards that judge the run and that it is not trained on; empty on all processes but the main one.
        alarm: reward-hacking alarm with the history of evaluations.
        latest: (step, held-out metrics) of the last evaluation; of step -1 before there is one.

    Raises:
        InputError: on every process, for a held-out reward that cannot be built.
    """

    def __init__(self, trainer: Trainer):
        evaluate, self._trainer = trainer.recipe.config.evaluate, trainer
        self.rewards = RewardSet([], trainer.plugins, trainer.task)
        on_main(trainer.accelerator, self._load_judges)
        directions = {name: trainer.task.metrics.get(name, "up") for name in (*evaluate.held_out, *self.rewards.configs)}
        self._told: set[str] = set()
        self.latest: tuple[int, dict[str, float]] = (-1, {})
        self.alarm = HackingAlarm({} if trainer.rewards is None else trainer.rewards.weights, directions)

    def _load_judges(self) -> None:
        trainer = self._trainer
        judges = [reward.here for reward in trainer.recipe.config.evaluate.rewards]
        self.rewards = RewardSet(judges, trainer.plugins, trainer.task, device=trainer.accelerator.device)

    def __call__(self, run_log: RunLog, output: Path, preemption: Preemption) -> dict[str, float]:
        """Held-out metrics of the averaged student, the same on all processes. Call on every process.

        The main process also logs them to `run_log`, and writes a picture and the samples to the folder `output`.

        Raises:
            Interrupted: on every process, where a signal came; the evaluation can be made again.
            RunError: on every process, where the evaluation fails, or a reward looks hacked and the recipe says to stop then.
        """
        trainer = self._trainer
        labels = trainer.task.balanced_labels(trainer.recipe.config.evaluate.samples)
        is_main = trainer.accelerator.is_main_process
        # All processes have to call a student that is sharded over them.
        samples = trainer.sample(labels, "evaluation") if trainer.student_is_sharded else None
        outcome: list[Any] = [{}, "", "", 0]
        cause = None
        if is_main:
            try:
                if samples is None:
                    samples = trainer.sample(labels, "evaluation", between=preemption.stop_point)
                outcome[:2] = self._judge(run_log, output, samples, labels, preemption)
            except Interrupted as signal:
                outcome[3] = int(signal.args[0])
            except BaseException as error:  # broadcast first: a lone exception would leave the other processes waiting
                outcome[2], cause = in_words(error), error
        broadcast_object_list(outcome)
        evaluation: dict[str, float] = outcome[0]
        warning, failure, signum = outcome[1:]
        if signum:
            raise Interrupted(signum)
        if failure:
            raise RunError(f"the held-out evaluation failed: {failure}") from cause
        self.latest = (trainer.step, evaluation)
        if warning and trainer.train.stop_on_hacking:
            raise RunError(f"{warning}\nTo go on all the same, set train.stop_on_hacking to false")
        return evaluation

    def _judge(
        self, run_log: RunLog, output: Path, samples: Tensor, labels: Tensor, preemption: Preemption
    ) -> tuple[dict[str, float], str]:
        """(held-out metrics, warning about a reward that looks hacked or "") of `samples`, drawn, then logged."""
        with preemption.leaving():
            evaluation, row, picture = self._measured(output, samples, labels)
        warning = self._hacking_warning(row)
        run_log.record(self._trainer.step, {**row, "hacking_alarm": float(bool(warning))} if self._trainer.scoring else row)
        self.latest = (self._trainer.step, evaluation)  # before the others get it: should one have died, it is not made again
        if picture.is_file():
            run_log.picture(picture, self._trainer.step)
        return evaluation, warning

    def _measured(self, output: Path, samples: Tensor, labels: Tensor) -> tuple[dict[str, float], dict[str, float], Path]:
        """(held-out metrics, a line of metrics.jsonl, the picture's file) of `samples`, which are written too."""
        trainer, task = self._trainer, self._trainer.task
        config = trainer.recipe.config
        media = trainer.backbone.decode_in_parts(samples, config.evaluate.batch_size)
        evaluation = task.evaluate(media, labels, samples)
        evaluation |= mean_scores(self.rewards, task, media, labels, config.evaluate.batch_size)
        row = {f"held_out/{name}": value for name, value in evaluation.items()}
        row |= health(media, labels)
        if trainer.scoring is not None:
            judge = task.judge()
            row |= trainer.scoring.evaluate(media, labels, None if judge is None else judge.fits(media, labels))
        return evaluation, row, self._written(output / "samples", media, samples, labels)

    def _written(self, folder: Path, media: Tensor, samples: Tensor, labels: Tensor) -> Path:
        """Writes pictures of `media`, their prompts and the `samples` to `folder`; the picture's file.

        Training depends on none of them, and goes on where the disk does not take one.
        """
        task, step = self._trainer.task, self._trainer.step
        title, picture = f"{self._trainer.recipe.config.objective.name}, step {step}", folder / f"step-{step:06d}"
        with dispensable(picture, LESS):
            picture = save_samples(picture, task, title, media, labels)
        if not task.num_classes:
            prompts = json.dumps(task.prompts(torch.unique_consecutive(labels)[:ROWS]), indent=1)
            with dispensable(folder / PROMPTS, LESS):
                write_text(folder / PROMPTS, prompts)
        latest = folder / "latest.safetensors"
        with dispensable(latest, LESS), replaced_file(latest) as draft:
            save_file({"samples": samples.contiguous(), "labels": labels}, draft)
        return picture

    @cached_property
    def _real_saturation(self) -> float:
        return real_saturation(self._trainer.task)

    def _levers(self) -> list[str]:
        """The options that set the influence of the reward, with their values."""
        return [f"objective.{name} (now {value})" for name, value in self._trainer.objective.reward_levers.items() if value]

    def _hacking_warning(self, row: dict[str, float]) -> str:
        """The warning about a reward that looks hacked after the evaluation `row`; empty if none does."""
        triggered_before = self.alarm.triggered
        finding = self.alarm.add({"step": self._trainer.step, **row})
        scale = self._trainer.objective.guidance_scale
        for problem in problems(self.alarm.rows, scale, self._levers(), self._real_saturation):
            if (kind := problem.partition(":")[0]) not in self._told:
                self._told.add(kind)
                log.warning("step %d: %s", self._trainer.step, problem)
        if finding is None:
            return ""
        told = warning(finding, self._levers())
        if not triggered_before:
            log.warning("%s", told)
        return told
