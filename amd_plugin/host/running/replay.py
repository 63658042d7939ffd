"""One update of a run, made again from its dump: what ``amd-plugin replay DUMP`` does."""

from __future__ import annotations

import json
import math
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from torch import Tensor

from amd_plugin.errors import InputError, unreadable_is_input_error
from amd_plugin.host.running.accelerator import make_accelerator
from amd_plugin.host.training import turn_dump
from amd_plugin.host.training.non_finite import Finding, described, diagnose, not_finite_gradients
from amd_plugin.host.training.trainer import Trainer
from amd_plugin.host.training.turn import STAGE_OF, STAGES, Trace, Turn, with_directions
from amd_plugin.host.training.turn_dump import Dump
from amd_plugin.plugins import PluginManager
from amd_plugin.recipe.loading import Recipe, load
from amd_plugin.threads import one_thread

ADVICE = " Use another dump"
ALONE = ("train.trackers=[]", "distributed.teacher=none", "distributed.trained=none")  # a replay is one process


class Stage(NamedTuple):
    """A stage of the update that was made again.

    Attributes:
        name: its name, of `amd_plugin.host.training.turn.STAGES`.
        not_finite: positions of the samples that are not finite in it.
        gap: largest difference to the run's values; 0 where they are equal to the bit.
    """

    name: str
    not_finite: list[int]
    gap: float


class Replay(NamedTuple):
    """An update that was made again.

    Attributes:
        step, role: what it is of.
        sentence: what is not finite, or that all of it is finite.
        stages: what was computed, in order.
        parameters: names of parameters whose gradients are not finite.
    """

    step: int
    role: str
    sentence: str
    stages: list[Stage]
    parameters: list[str]

    def as_json(self) -> str:
        """The replay for programs; the gap of a stage is null where other values were not finite than in the run."""
        stages = [{**stage._asdict(), "gap": stage.gap if math.isfinite(stage.gap) else None} for stage in self.stages]
        return json.dumps({**self._asdict(), "stages": stages}, indent=1, allow_nan=False)

    def lines(self) -> Iterator[str]:
        """The replay in words."""
        yield f"step {self.step + 1}, {self.role.replace('_', ' ')} update: {self.sentence}"
        for stage in self.stages:
            rest = f" and {len(stage.not_finite) - 8} more" if len(stage.not_finite) > 8 else ""
            state = f"not finite in samples {', '.join(map(str, stage.not_finite[:8]))}{rest}" if stage.not_finite else "finite"
            yield f"  {stage.name}: {state}; {_compared(stage.gap)}"
        if self.parameters:
            more = f" and {len(self.parameters) - 5} more" if len(self.parameters) > 5 else ""
            yield f"  gradient: not finite in {', '.join(self.parameters[:5])}{more}"


def replay(path: Path, plugins: PluginManager, overrides: Sequence[str] = ()) -> Replay:
    """The update in the dump `path`, made again. Writes nothing.

    Args:
        path: the folder of the dump.
        plugins: registry of objectives, rewards and hooks.
        overrides: overrides ``a.b=value`` of the recipe, e.g. of the precision.

    Raises:
        InputError: for a dump that cannot be read, or whose parts do not fit each other.
    """
    dump = turn_dump.read(path)
    recipe = _recipe(path, dump, plugins, overrides)
    with one_thread(recipe.config.model.network is not None):
        accelerator = make_accelerator(recipe, path)
        if accelerator.num_processes > 1:
            raise InputError("replay: works in one process; start it without a launcher")
        trainer = Trainer(recipe, plugins, accelerator)
        try:
            with unreadable_is_input_error(f"dump {path}: does not fit its recipe", ADVICE):
                turn = _restored(trainer, dump)
            with unreadable_is_input_error(f"dump {path}: its update cannot be made again", ADVICE):
                return _again(trainer, turn, dump)
        finally:
            if trainer.rewards is not None:
                trainer.rewards.close()


def _recipe(path: Path, dump: Dump, plugins: PluginManager, overrides: Sequence[str]) -> Recipe:
    with tempfile.TemporaryDirectory(prefix="amd-plugin-") as folder:
        file = Path(folder) / "config.yaml"
        file.write_text(yaml.safe_dump(dump.state.recipe, sort_keys=False), encoding="utf-8")
        try:
            return load(str(file), plugins, (*ALONE, *overrides))
        except InputError as error:  # the file is gone when somebody looks for it
            named = re.sub(rf"{re.escape(str(file))}(:\d+)*", lambda _: f"the recipe in {path}", str(error))
            raise InputError(named) from error


def _restored(trainer: Trainer, dump: Dump) -> Turn:
    parts = trainer.state()
    for name, state in dump.weights.items():
        parts[name].load_state_dict(state)
    trainer.objective.load_state_dict(dump.state.objective)
    trainer.objective.schedule_factor = dump.state.schedule_factor
    trainer.step = dump.state.step
    if dump.state.role not in trainer.learners:
        raise InputError(f"role: one of {', '.join(trainer.learners)} expected, got '{dump.state.role}'")
    return turn_dump.turn_of(dump, trainer)


def _again(trainer: Trainer, turn: Turn, dump: Dump) -> Replay:
    trace = _trace(trainer, turn)
    parameters = not_finite_gradients(trainer.learners[turn.role].role)
    findings = diagnose(trainer, turn, trace)
    finite = not parameters and findings == [Finding("gradient")]
    sentence = "all of it is finite" if finite else described(trainer, turn, findings)
    rows = {finding.stage: list(finding.samples) for finding in findings}
    stages = [
        Stage(stage, rows.get(stage, []), gap) for stage in STAGES if (gap := _gap(stage, trace, dump.computed)) is not None
    ]
    return Replay(dump.state.step, turn.role, sentence, stages, parameters)


def _trace(trainer: Trainer, turn: Turn) -> Trace:
    """Computes the update's gradients; what was computed."""
    if turn.role == "fake_score":
        return trainer.fake_score_gradients(turn)[1]
    if turn.role == "student":
        before = trainer.objective.state_dict()
        _, trace, signals = trainer.student_gradients(turn)
        trainer.objective.load_state_dict(before)
        return with_directions(trainer.objective, signals, trace)
    if trainer.adversary is None:
        raise InputError("dump: its recipe has no discriminator")
    return trainer.adversary.gradients(turn.batch, turn.parts, [exit.x0 for exit in turn.exits])[1]


def _compared(gap: float) -> str:
    if math.isinf(gap):
        return "unlike the run, where other values were not finite"
    return f"up to {gap:.3g} off the run" if gap else "as in the run, to the bit"


def _gap(stage: str, trace: Trace, run: dict[str, Tensor]) -> float | None:
    """The largest difference between what was computed and what the run had; None where there is nothing of `stage`."""
    gaps: list[Any] = []
    for name in trace[0]:
        if STAGE_OF[name] == stage and name in run:
            here, there = torch.cat([part[name] for part in trace]).cpu().double(), run[name].double()
            if here.shape != there.shape:
                raise ValueError(f"computed: {name} should have the shape {(*here.shape,)}, got {(*there.shape,)}")
            # What is not finite in both is no difference.
            gap = (here - there).abs().where(here.isfinite() | there.isfinite(), 0.0).nan_to_num(torch.inf)
            gaps.append(float(gap.max()) if gap.numel() else 0.0)
    return max(gaps) if gaps else None
