"""The consequences of an update that is not finite: where it began, a dump of it, and the end of the run or one update less.

An update is refused by the norm of gradients that are averaged over all processes, so that all of them decide alike. Its cause
may lie on one of them, and is told to all.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn

from amd_plugin.config import TrainConfig
from amd_plugin.errors import RunError, printable
from amd_plugin.host.training import turn_dump
from amd_plugin.host.training.turn import STAGE_OF, STAGES, Trace, Turn
from amd_plugin.models.roles import Role

if TYPE_CHECKING:
    from amd_plugin.host.training.trainer import Trainer

log = logging.getLogger(__name__)

FOLDER = "nonfinite"  # in the run's folder
DUMPS = 3  # of a run: the first ones tell the most, and each is as large as the weights
WINDOW = 1000  # steps in which `train.max_skipped` updates may be skipped


class Finding(NamedTuple):
    """A stage of an update that is not finite.

    Attributes:
        stage: its name, of `STAGES`.
        process: the process on which it was found.
        what: the names of weights; empty for samples.
        samples: the samples' positions in the joined batch; empty for weights and gradients.
    """

    stage: str
    process: int = 0
    what: tuple[str, ...] = ()
    samples: tuple[int, ...] = ()


class NonFinitePolicy:
    """What a run does about updates that are not finite, by `train.on_nonfinite`.

    Args:
        train: the recipe's train section.

    Attributes:
        run: the run's folder, where dumps go; None for no dumps.
    """

    def __init__(self, train: TrainConfig):
        self._train = train
        self.run: Path | None = None
        self._skipped: list[int] = []
        self._now: dict[str, float] = {}

    def refuse(self, trainer: Trainer, turn: Turn, trace: Trace, objective: dict[str, object]) -> None:
        """Says what is wrong with `turn`, which was not applied, dumps it, and counts it. Call on every process.

        Args:
            trainer: the trainer, with the weights that the turn started from.
            turn: the update.
            trace: what it computed.
            objective: the objective's state before it.

        Raises:
            RunError: on every process, where the recipe says so, or too many were skipped.
        """
        findings = diagnose(trainer, turn, trace)
        place = self._dump(trainer, turn, trace, findings, objective)
        message = f"step {trainer.step + 1}, {turn.role.replace('_', ' ')} update: {described(trainer, turn, findings)}"
        message = f"{message}. The update was left out. {place}".rstrip()
        self._now[turn.role] = self._now.get(turn.role, 0.0) + 1
        self._skipped = [step for step in self._skipped if step > trainer.step - WINDOW] + [trainer.step]
        if self._train.on_nonfinite == "raise":
            raise RunError(f"{message}\nWith train.on_nonfinite: skip a run goes on without such updates")
        if len(self._skipped) > self._train.max_skipped:
            most = f"more than train.max_skipped {self._train.max_skipped} within {WINDOW} steps"
            raise RunError(f"{message}\n{len(self._skipped)} were left out, {most}. Mend the cause, or lower learning rates")
        if trainer.accelerator.is_main_process:
            log.warning("%s", message)

    def metrics(self, roles: list[str]) -> dict[str, Tensor]:
        """The number of updates skipped since the last call, by role; none where a run stops at the first."""
        skipped, self._now = self._now, {}
        if self._train.on_nonfinite == "raise":
            return {}
        return {f"skipped/{role}": torch.tensor(skipped.get(role, 0.0)) for role in roles}

    def state_dict(self) -> list[int]:
        """JSON-able: the steps of the last skipped updates."""
        return list(self._skipped)

    def load_state_dict(self, state: list[int]) -> None:
        """Restores the result of `state_dict`."""
        self._skipped = list(state)

    def _dump(self, trainer: Trainer, turn: Turn, trace: Trace, findings: list[Finding], objective: dict[str, object]) -> str:
        """Writes the dump, if there is room for one more; a sentence about it, the same on every process."""
        if self.run is None:
            return ""
        folder = self.run / FOLDER
        there, before = gather_object([(len(list(folder.glob("step-*"))), turn_dump.place(folder, turn).exists())])[0]
        if before:  # the first one of a step is the cause of the others
            return f"{turn_dump.place(folder, turn)} has an earlier update of this step"
        if there >= DUMPS:
            return f"{there} dumps are in {folder} already"
        return turn_dump.write(folder, trainer, turn, trace, [tuple(finding) for finding in findings], objective)


def diagnose(trainer: Trainer, turn: Turn, trace: Trace) -> list[Finding]:
    """All that is not finite in an update, in the order of `STAGES`, the same on every process. Call on every process."""
    process, found = trainer.accelerator.process_index, list[Finding]()
    networks = {"student": trainer.student, "fake_score": trainer.fake_score, "teacher": trainer.teacher}
    for name, role in networks.items():
        if bad := not_finite(role.network):
            found.append(Finding("weights", process, tuple(f"{name}: {parameter}" for parameter in bad[:3])))
    for stage in STAGES:
        samples = sorted({row for rows, part in zip(turn.parts, trace, strict=True) for row in _rows(part, stage, rows.start)})
        if samples:
            found.append(Finding(stage, process, (), tuple(samples)))
    everyone = [Finding(*finding) for finding in gather_object([tuple(finding) for finding in found])]
    # The sort is stable, so that equal stages stay in the order of processes.
    return [*sorted(everyone, key=lambda finding: STAGES.index(finding.stage)), Finding("gradient")]


def described(trainer: Trainer, turn: Turn, findings: list[Finding]) -> str:
    """A sentence about `findings`, with the first one's process, sample and prompt."""
    first, *rest = findings
    text = f"the gradient is not finite; the first that is not: {first.stage}"
    if first.what:
        text += f" ({', '.join(first.what)})"
    if first.samples:
        sample = first.samples[0]
        prompt = printable(trainer.task.prompts(turn.batch.labels[sample : sample + 1])[0])
        more = f" and {len(first.samples) - 1} more" if len(first.samples) > 1 else ""
        text += f", of sample {sample} (prompt '{prompt}'){more}"
    if trainer.accelerator.num_processes > 1 and first.stage != "gradient":
        text += f", on process {first.process}"
    later = list(dict.fromkeys(finding.stage for finding in rest if finding.stage != first.stage))
    return f"{text}; then {', '.join(later)}" if later else text


def not_finite(network: nn.Module) -> list[str]:
    """The names of the parameters of `network` that are not finite, as far as they are on this process."""
    return [name for name, p in network.named_parameters() if not p.is_meta and not bool(torch.isfinite(p).all())]


def not_finite_gradients(role: Role) -> list[str]:
    """The names of the parameters that `role` trains whose gradients are not finite."""
    return [name for name, p in role.named_parameters().items() if p.grad is not None and not bool(p.grad.isfinite().all())]


def _rows(part: dict[str, Tensor], stage: str, start: int) -> list[int]:
    """The samples of a micro-batch whose values of `stage` are not finite, by their positions in the joined batch."""
    rows: set[int] = set()
    for name, value in part.items():
        if STAGE_OF[name] == stage:
            bad = ~torch.isfinite(value.float().reshape(len(value), -1)).all(1)
            rows |= {start + int(row) for row in bad.nonzero().flatten()}
    return sorted(rows)
