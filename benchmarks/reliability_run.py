"""The small run that reliability.py disturbs, its phases by the calls that they make, and how two such runs differ."""

import json
import random
import signal
import sys
import time
from collections.abc import Callable, Sequence
from itertools import zip_longest
from pathlib import Path

import torch
from reliability_processes import around, strike

from amd_plugin import get_plugin_manager, hookimpl, interrupts
from amd_plugin import recipe as recipes
from amd_plugin.host import checkpoint, run
from amd_plugin.host.evaluation.evaluate import HeldOutEvaluation
from amd_plugin.host.running.run_log import RunLog
from amd_plugin.models.embedded import teacher

LAST = 6
SMALL = (
    "model.width=8", "model.teacher.steps=20", "model.teacher.batch_size=32", f"train.max_steps={LAST}", "train.batch_size=8",
    "train.group_size=4", "train.fake_updates=1", "train.log_every=4", "train.evaluate_every=3", "train.checkpoint_every=2",
    "train.trackers=[]", "evaluate.samples=80",
)  # fmt: skip
TEACHER, RESTORING, EXPORT, ANYWHERE = "teacher training", "restoring", "export", "anywhere"
PHASES = {
    "opening the folder": (run, "open_folder"), TEACHER: (teacher, "train_teacher"),
    "writing a checkpoint": (run, "save"), "evaluation": (HeldOutEvaluation, "__call__"), "logging": (RunLog, "write"),
    RESTORING: (run, "restore"), EXPORT: (run, "_finish"),
}  # fmt: skip
PLACES = (*PHASES, ANYWHERE)
# Times and names of processes, and the checkpoints that a fault has damaged.
OF_A_START = ("run.json", "cost.json", ".lock", ".holder.json", "checkpoints/set-aside/")


class Rewards:
    """A reward that is slow, and one that fails now and then."""

    @hookimpl
    def distill_rewards(self) -> dict[str, Callable[..., object]]:
        calls = []

        def slow(media: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
            time.sleep(0.02)
            return media.flatten(1).mean(1)

        def failing(media: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
            calls.append(1)
            if len(calls) % 7 == 0:
                raise ValueError("now and then")
            return media.flatten(1).mean(1)

        return {"slow": lambda: slow, "failing": lambda: failing}


def train(folder: Path, *settings: str) -> None:
    """The small run in `folder`, from wherever it stands, as the command line runs it, which answers signals everywhere."""
    interrupts.answer()
    plugins = get_plugin_manager()
    plugins.register(Rewards())
    run.train(recipes.load("modes2d", plugins, (*SMALL, *settings)), plugins, folder, resume="auto")


def counted(folder: Path, out: Path, wanted: Sequence[str]) -> None:
    """A run, with the numbers of calls in each call of the `wanted` phases in `out`."""
    ticks, calls = 0, {name: list[int]() for name in PLACES}

    def tick(*event: object) -> None:
        nonlocal ticks
        ticks += 1

    for name, place in PHASES.items():
        begun: list[int] = []
        around(place, lambda b=begun: b.append(ticks), lambda b=begun, n=name: calls[n].append(ticks - b.pop()))
    sys.setprofile(tick)
    train(folder)
    sys.setprofile(None)
    calls[ANYWHERE].append(ticks)
    known = json.loads(out.read_text()) if out.exists() else {}
    out.write_text(json.dumps(known | {name: calls[name] for name in wanted}))


def struck(
    folder: Path, phase: str, calls: dict[str, list[int]], draws: random.Random, settings: Sequence[str] = (),
    signum: int = signal.SIGKILL, times: int = 1,
) -> None:  # fmt: skip
    """Runs, and gets a signal at a random moment of a random call of a phase, of those that are left to the run."""
    done = max(map(checkpoint.step_of, (folder / "checkpoints").glob("step-*")), default=0) / LAST
    left = calls[phase][-max(1, round(len(calls[phase]) * (1 - done))) :]
    call, seconds = draws.randrange(len(left)), draws.choice((0.0, draws.uniform(0, 0.005)))  # some fall into C's calls
    if phase == ANYWHERE:
        strike(draws.randrange(int(left[0] * (1 - done)) or left[0]), seconds, signum, times)
    else:
        moment, begun = draws.randrange(left[call]), list[int]()

        def begin() -> None:
            begun.append(1)
            if len(begun) == call + 1:
                strike(moment, seconds, signum, times)

        around(PHASES[phase], begin)
    train(folder, *settings)


def different(one: Path, two: Path, lacks: tuple[str, ...] = ()) -> str:
    """The files by which two complete runs differ, and where that began; empty where they are equal.

    Args:
        one: the run that nothing disturbed.
        two: the other one, of the same commit, which the model card names.
        lacks: beginnings of the names of files that may be absent in `two`; then the card, which shows one, may be another, and
            so may the list of the student's files.
    """
    here, there = _files(one), _files(two)
    absent = {name for name in here - there if name.startswith(lacks)}
    absent |= {"student/README.md", "student/checksums.json"} if absent else set()
    names = sorted(name for name in (here | there) - absent if not _equal(one / name, two / name))
    return f"{', '.join(names)}; first in {_first_difference(one, two)}" if names else ""


def _files(folder: Path) -> set[str]:
    """The names of all files of a run that do not tell of its starts and of its faults."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())
    return {name for name in names if not name.startswith(OF_A_START)}


def _equal(one: Path, two: Path) -> bool:
    return one.is_file() and two.is_file() and one.read_bytes() == two.read_bytes()


def _first_difference(one: Path, two: Path) -> str:
    """The first line of metrics.jsonl, and the first checkpoint that both runs have, by which they differ."""
    lines = [path.read_text().splitlines() if path.is_file() else [] for path in (one / "metrics.jsonl", two / "metrics.jsonl")]
    found = [f"line {n} ({a} / {b})" for n, (a, b) in enumerate(zip_longest(*lines, fillvalue="none"), 1) if a != b][:1]
    for folder in sorted((one / "checkpoints").iterdir()):
        other = two / "checkpoints" / folder.name
        unlike = [file.name for file in sorted(folder.iterdir()) if other.is_dir() and not _equal(file, other / file.name)]
        if unlike:
            return ", ".join([*found, f"{folder.name} ({', '.join(unlike)})"])
    return ", ".join(found) or "no step"
