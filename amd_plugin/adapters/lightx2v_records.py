"""What a run of LightX2V with AMD keeps: metrics in its tracker and log, and state in its checkpoints."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict
from torch import Tensor

from amd_plugin.adapters.bridge import HostBridge
from amd_plugin.adapters.failures import Failures
from amd_plugin.adapters.host_metrics import prefixed, stacked
from amd_plugin.adapters.lightx2v_host import DmdTrainer, distributed
from amd_plugin.adapters.run_state import restore, restoring, state_of
from amd_plugin.adapters.validation import Validation
from amd_plugin.atomic import write_text
from amd_plugin.json_files import Step
from amd_plugin.objectives.amd import AMDObjective

log = logging.getLogger(__name__)
STATE = "amd_state.json"
SHOWN = ("amd/reward", "amd/zone_share")  # the metrics in the log, beside those of each reward
_Base = DmdTrainer if TYPE_CHECKING else object


class State(BaseModel):
    """The content of amd_state.json, beside what `state_of` gives."""

    model_config = ConfigDict(extra="allow")

    student_updates: Step
    turns: Step = 0


class Records(_Base):  # type: ignore[misc, valid-type]
    """A mix-in over a trainer of LightX2V.

    Attributes:
        objective: objective whose state is kept.
        bridge: bridge between the objective and LightX2V.
        student_updates: number of student updates so far.
        turns: number of turns so far, a key of random draws.
        validation: the alarm's history; None without option ``held_out``.
        failures: the memory of failures; None without option ``memory_share`` or without a reward.
    """

    objective: AMDObjective
    bridge: HostBridge
    student_updates = turns = 0
    validation: Validation | None = None
    failures: Failures | None = None
    _metrics: dict[str, Tensor]

    def _after_student_optimizer_step(self, role: str) -> None:
        super()._after_student_optimizer_step(role)
        self.student_updates += 1

    def amd_metrics(self) -> dict[str, float]:
        """Metrics of the last student turn: ``amd/NAME``, and ``reward/NAME`` of each reward."""
        metrics = prefixed(self._metrics | self.bridge.metrics, "amd/")
        return dict(zip(metrics, stacked(metrics).tolist(), strict=True)) if metrics else {}

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """LightX2V's metrics with AMD's, to its tracker; the main ones also to its log."""
        own = self.amd_metrics()
        shown = sorted(name for name in own if name.startswith("reward/") or name in SHOWN)
        if shown:
            from loguru import logger

            logger.info("[train] iter={} {}", step, " ".join(f"{name}={own[name]:.6f}" for name in shown))
        super().log_metrics({**metrics, **own}, step=step)

    def log_validation(self, metrics: Mapping[str, float], step: int) -> None:
        """Metrics of a validation, to LightX2V's tracker and log."""
        from loguru import logger

        logger.info("[infer] iter={} {}", step, " ".join(f"{name}={value:.6f}" for name, value in metrics.items()))
        super().log_metrics(metrics, step=step)

    def save_checkpoint(self, iteration: int, save_total_limit: int) -> None:
        """LightX2V's checkpoint, with AMD's state as JSON in it: before the file by which LightX2V calls it complete."""
        state = state_of(self.bridge, self.validation, self.failures)
        text = json.dumps(state | {"student_updates": self.student_updates, "turns": self.turns})
        path = Path(self.output_train_dir, f"checkpoint-{iteration:09d}", STATE)
        if distributed.is_main_process():
            write_text(path, text)
        super().save_checkpoint(iteration, save_total_limit)
        if distributed.is_main_process() and not path.is_file():  # the phased trainer puts a folder of its own there
            write_text(path, text)

    def _load_resume_state(self, resume_ckpt_path: str) -> None:
        super()._load_resume_state(resume_ckpt_path)
        saved = Path(resume_ckpt_path, STATE)
        if not saved.is_file():
            log.warning("%s has no %s: AMD's running statistics start anew", resume_ckpt_path, STATE)
            self.student_updates = int(Path(resume_ckpt_path).name.rpartition("-")[2])
            return
        with restoring(saved, State) as state:
            restore(state.model_extra or {}, self.bridge, self.validation, self.failures)
        self.student_updates, self.turns = state.student_updates, state.turns
