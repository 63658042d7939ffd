"""Metrics of a run while it runs: metrics.jsonl, trackers, a progress bar or plain lines."""

from __future__ import annotations

import json
import logging
import resource
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from amd_plugin.atomic import write_text
from amd_plugin.busy import busy, duration
from amd_plugin.host.running.trackers import Trackers

if TYPE_CHECKING:  # the report reads a log, and must not wait for accelerate
    from accelerate import Accelerator

log = logging.getLogger(__name__)


class RunLog:
    """Collects the metrics of every step, and writes their mean over each logging interval.

    Args:
        path: file metrics.jsonl. Lines of steps after `step` are dropped, since a resumed run writes them anew.
        step: number of student updates so far.
        max_steps: number of student updates at the end of the run.
        accelerator: the run's processes.
        console: console for progress: a bar on a terminal, lines elsewhere; no output where None.
        trackers: the run's trackers.

    Attributes:
        last: metrics written last, by name.
    """

    def __init__(
        self, path: Path, step: int, max_steps: int, accelerator: Accelerator, console: Console | None,
        trackers: Trackers | None = None,
    ):  # fmt: skip
        self._accelerator, self._max_steps, self._console = accelerator, max_steps, console
        self._trackers = trackers or Trackers()
        self._window: list[dict[str, Tensor]] = []
        self._held_out = ""
        self._updates, self._seconds, self._resumed_at = 0, 0.0, time.monotonic()
        self.last: dict[str, float] = {}
        self._file = self._bar = None
        if accelerator.is_main_process:
            lines = [line for line in path.read_text().splitlines() if _step(line) <= step] if path.exists() else []
            write_text(path, "".join(f"{line}\n" for line in lines))
            self._file = path.open("a")
            if console is not None and console.is_terminal:
                columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
                self._bar = Progress(*columns, TextColumn("{task.fields[note]}"), console=console)
                self._row = self._bar.add_task("distilling", total=max_steps, completed=step, note="")
                self._bar.start()

    def add(self, metrics: Mapping[str, Tensor]) -> None:
        """Adds the metrics of one step, without waiting for the device."""
        self._window.append(dict(metrics))
        self._updates += 1

    @contextmanager
    def pausing(self, what: str) -> Iterator[None]:
        """Around what is no update, e.g. ``evaluating``: says so, and leaves its time out of that of an update."""
        self._pause()
        if self._bar is not None:
            self._bar.update(self._row, description=what)
        plain = None if self._bar is not None or not self._accelerator.is_main_process else self._console
        try:
            with busy(plain, what):
                yield
        finally:
            self._resumed_at = time.monotonic()
            if self._bar is not None:
                self._bar.update(self._row, description="distilling")

    def show_held_out(self, values: Mapping[str, float]) -> None:
        """Takes held-out metrics into the lines that follow."""
        self._held_out = "  ".join(f"{name} {value:.3g}" for name, value in list(values.items())[:2])

    def write(self, step: int, settings: Mapping[str, float] = MappingProxyType({})) -> dict[str, float]:
        """Writes and shows the means since the last call, over steps and processes; returns them. Call on every process.

        Args:
            step: student updates so far.
            settings: what else only the trackers get, e.g. learning rates.
        """
        names = sorted({name for metrics in self._window for name in metrics})
        if not names:
            return {}
        # A process may lack a value that others have, e.g. where none of its samples is at that noise level.
        means = torch.stack([torch.stack([m[n].float() for m in self._window if n in m]).nanmean() for n in names])
        defined = ~means.isnan()
        both = torch.stack((torch.where(defined, means, 0.0), defined.float())).to(self._accelerator.device)
        total, count = self._accelerator.reduce(both, "sum")
        means = total / count
        self._window.clear()
        self.last = dict(zip(names, means.tolist(), strict=True))
        self.record(step, self.last)
        self._pause()
        self._resumed_at = time.monotonic()
        each, memory = self._seconds / self._updates, _gigabytes()
        if self._file is not None:
            # Not in metrics.jsonl, which is equal for equal runs.
            self._trackers.log({"time/seconds_per_update": each, "memory/gigabytes": memory, **settings}, step)
        note = self._note(each * (self._max_steps - step), each, memory)
        if self._bar is not None:
            self._bar.update(self._row, completed=step, note=note)
        elif self._console is not None and self._accelerator.is_main_process:
            self._console.print(f"step {step}/{self._max_steps}  {note}", highlight=False)
        return self.last

    def _pause(self) -> None:
        self._seconds += time.monotonic() - self._resumed_at

    def _note(self, left: float, each: float, memory: float) -> str:
        """What somebody who watches a run wants to see of it."""
        losses = (self.last.get(f"loss/{role}", float("nan")) for role in ("student", "fake_score"))
        parts = [f"{name} {value:.4f}" for name, value in zip(("student", "fake"), losses, strict=True)]
        parts += [f"{name.removeprefix('reward/')} {v:.3g}" for name, v in self.last.items() if name.startswith("reward/")]
        if "objective/zone_share" in self.last:
            parts.append(f"zone {self.last['objective/zone_share']:.0%}")
        parts += [self._held_out] if self._held_out else []
        rate = f"{each:.3g} s/update" if each >= 0.1 else f"{1000 * each:.0f} ms/update"
        parts += [rate, f"{duration(left)} left"] if left else [rate]
        return "  ".join([*parts, f"{memory:.1f} GB"])

    def record(self, step: int, values: Mapping[str, float]) -> None:
        """Writes one line of metrics.jsonl, and the same to the trackers; values that are NaN are left out."""
        if self._file is not None:
            finite = {name: value for name, value in values.items() if value == value}
            self._file.write(json.dumps({"step": step, **finite}) + "\n")
            self._file.flush()
            self._trackers.log(finite, step)

    def picture(self, path: Path, step: int) -> None:
        """Sends the picture at `path` to the trackers."""
        self._trackers.picture(path, step)

    def close(self) -> None:
        """Stops the bar, closes the file, and ends the runs of the trackers."""
        self._trackers.close()
        if self._bar is not None:
            self._bar.stop()
        if self._file is not None:
            self._file.close()


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; a line that is not JSON, e.g. one cut short by a crash, is left out with a warning."""
    lines = []
    for line in path.read_text().splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            log.warning("%s: a line is not JSON and is left out", path)
    return lines


def _gigabytes() -> float:
    """Most memory that this process has used: of its GPU where it has one, else of the machine."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9  # Linux counts in kilobytes


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
