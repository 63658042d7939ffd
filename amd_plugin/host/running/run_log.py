"""Metrics of a run while it runs: metrics.jsonl, trackers, a progress bar or plain lines.

A line belongs to a step that a checkpoint vouches for: a run that goes on from one cuts what came after it, and takes up the
means that were being formed.
"""

from __future__ import annotations

import json
import logging
import math
import resource
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch
from pydantic import BaseModel, Field
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from torch import Tensor

from amd_plugin.atomic import write_bytes
from amd_plugin.busy import EVERY, busy, duration
from amd_plugin.errors import InputError
from amd_plugin.host.running import run_cost
from amd_plugin.host.running.line_file import LineFile
from amd_plugin.host.running.run_cost import Cost
from amd_plugin.host.running.trackers import Trackers
from amd_plugin.json_files import MOST_STEPS, read_lines
from amd_plugin.terminal import draws, plain, tell

if TYPE_CHECKING:  # the report reads a log, and must not wait for accelerate
    from accelerate import Accelerator

log = logging.getLogger(__name__)

Line = dict[str, float]  # of metrics.jsonl


class LogState(BaseModel):
    """A `RunLog` in a checkpoint.

    Attributes:
        lines: number of lines of metrics.jsonl; None where it is unknown.
        window: name -> (sum, number of values) since the last line, over processes.
        last: the metrics written last, by name.
    """

    lines: int | None = Field(default=None, ge=0)
    window: dict[str, tuple[float, float]] = {}
    last: Line = {}


class RunLog:
    """Collects the metrics of every step, and writes their mean over each logging interval.

    Args:
        path: file metrics.jsonl.
        step: number of student updates so far.
        max_steps: number of student updates at the end of the run.
        accelerator: the run's processes.
        console: console for progress: a bar on a terminal, lines elsewhere; no output where None.
        trackers: the run's trackers.
        state: state of the log in the checkpoint that the run goes on from; its lines are those in the file, see `cut`.

    Attributes:
        last: metrics written last, by name.
        step: number of student updates whose metrics it has.
    """

    def __init__(
        self, path: Path, step: int, max_steps: int, accelerator: Accelerator, console: Console | None,
        trackers: Trackers | None = None, state: LogState | None = None,
    ):  # fmt: skip
        self._accelerator, self._max_steps, self._console = accelerator, max_steps, console
        self._run, self._cost = path.parent, Cost(0.0, 0.0)
        self._trackers, state = trackers or Trackers(), state or LogState()
        # In double precision, in which a sum of some thousand single ones does not depend on their order.
        self._window: dict[str, Tensor] = {}
        device = accelerator.device
        for name, pair in state.window.items():
            self._window[name] = torch.tensor(pair, dtype=torch.float64, device=device)
        self._held_out = ""
        self.step = step
        self._updates, self._seconds, self._resumed_at = 0, 0.0, time.monotonic()
        self._shown_at = self._began_at = self._resumed_at
        self._pausing, self._closed = False, threading.Event()
        self.last: Line = dict(state.last)
        self._file: LineFile | None = None
        self._bar: Progress | None = None
        if accelerator.is_main_process:
            self._file = LineFile(path, state.lines or 0)
            if console is not None and draws(console):
                # What they show has names that plugins give, whose brackets would be markup.
                what, note = (TextColumn(field, markup=False) for field in ("{task.description}", "{task.fields[note]}"))
                columns = (what, SpinnerColumn("line"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), note)
                self._bar = Progress(*columns, console=console)
                self._row = self._bar.add_task("distilling", total=max_steps, completed=step, note="")
                self._bar.start()
            elif console is not None:
                threading.Thread(target=self._show_long_updates, daemon=True).start()

    def add(self, metrics: Mapping[str, Tensor]) -> None:
        """Adds the metrics of one step, over processes, without waiting for the device. Call on every process.

        A process may have NaN where others have values, but all have the same names. What has been added is known to each
        process, so that nothing is lost with one that dies.
        """
        if names := sorted(metrics):
            values = torch.stack([metrics[name].detach().to(self._accelerator.device, torch.float64) for name in names])
            pairs = torch.stack((values.nan_to_num(0.0, torch.inf, -torch.inf), (~values.isnan()).double()), 1)
            for name, pair in zip(names, self._accelerator.reduce(pairs, "sum"), strict=True):
                self._window[name] = self._window[name] + pair if name in self._window else pair
        self.step += 1
        self._updates += 1
        self._began_at = time.monotonic()
        self._show_step()

    def _show_step(self) -> None:
        """Shows the step without its metrics, which are on the device: in the bar, elsewhere in a line every ten seconds."""
        if self._bar is not None:
            self._bar.update(self._row, completed=self.step)
        elif time.monotonic() - self._shown_at >= EVERY:
            self._print(f"step {self.step}/{self._max_steps}")

    def _show_long_updates(self) -> None:
        """Says every ten seconds how long an update has lasted: those of large models take minutes."""
        while not self._closed.wait(EVERY / 10):
            now = time.monotonic()
            if not self._pausing and now - self._shown_at >= EVERY:
                self._print(
                    f"step {min(self.step + 1, self._max_steps)}/{self._max_steps}  ... {duration(now - self._began_at)}"
                )

    def _print(self, line: str) -> None:
        if self._console is not None and self._accelerator.is_main_process:
            with suppress(OSError):  # where it is printed to a file on a disk that is full
                tell(self._console, line)
        self._shown_at = time.monotonic()

    def state(self) -> LogState:
        """The state for a checkpoint, which vouches for lines that `settle` has put on the disk."""
        names, total = self._total()
        pairs = {name: (pair[0], pair[1]) for name, pair in zip(names, total.tolist(), strict=True)}
        return LogState(lines=None if self._file is None else self._file.count, window=pairs, last=self.last)

    def settle(self) -> None:
        """Returns when all lines are on the disk; raises NotWritten where it does not take them."""
        if self._file is not None:
            self._file.settle()

    @contextmanager
    def pausing(self, what: str, *, at_once: bool = True) -> Iterator[None]:
        """Around what is no update, e.g. ``evaluating``: says so as `busy` does, and leaves its time out."""
        self._pause()
        self._pausing = True
        if self._bar is not None:
            self._bar.update(self._row, description=plain(what))
        console = None if self._bar is not None or not self._accelerator.is_main_process else self._console
        try:
            with busy(console, what, at_once=at_once):
                yield
        finally:
            self._resumed_at = self._shown_at = self._began_at = time.monotonic()
            self._pausing = False
            if self._bar is not None:
                self._bar.update(self._row, description="distilling")

    def show_held_out(self, values: Mapping[str, float]) -> None:
        """Takes held-out metrics into the lines that follow."""
        self._held_out = "  ".join(f"{name} {value:.3g}" for name, value in list(values.items())[:2])

    def write(self, step: int, settings: Mapping[str, float] = MappingProxyType({})) -> dict[str, float]:
        """Writes and shows the means since the last call, over steps and processes; returns them.

        Args:
            step: student updates so far.
            settings: what else only the trackers get, e.g. learning rates.
        """
        names, total = self._total()
        if not names:
            return {}
        means = (total[:, 0] / total[:, 1]).float()
        self._window.clear()
        self.last = dict(zip(names, means.tolist(), strict=True))
        self.record(step, self.last)
        if not self._updates:  # the run goes on with another interval, and has timed none of these updates
            return self.last
        self._pause()
        self._resumed_at = time.monotonic()
        each, memory = self._seconds / self._updates, _gigabytes()
        self._cost = Cost(each, memory)
        if self._file is not None:
            # Not in metrics.jsonl, which is equal for equal runs.
            self._trackers.log({"time/seconds_per_update": each, "memory/gigabytes": memory, **settings}, step)
        note = self._note(each * (self._max_steps - step), each, memory)
        if self._bar is not None:
            self._bar.update(self._row, completed=step, note=plain(note))
        else:
            self._print(f"step {step}/{self._max_steps}  {note}")
        return self.last

    def _total(self) -> tuple[list[str], Tensor]:
        """(names, their sums and numbers of values [N, 2])."""
        names = sorted(self._window)
        return names, torch.stack([self._window[name] for name in names]) if names else torch.empty(0, 2)

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
        """Writes one line of metrics.jsonl, and the same to the trackers; values that are no numbers of JSON are left out."""
        if self._file is not None:
            finite = {name: value for name, value in values.items() if math.isfinite(value)}
            self._file.add(json.dumps({"step": step, **finite}))
            self._trackers.log(finite, step)

    def picture(self, path: Path, step: int) -> None:
        """Sends the picture at `path` to the trackers."""
        self._trackers.picture(path, step)

    def close(self) -> None:
        """Stops the bar, closes the file, writes what the run cost, and ends the runs of the trackers."""
        self._closed.set()
        self._trackers.close()
        if self._bar is not None:
            with suppress(OSError):  # the terminal may be gone
                self._bar.stop()
        if self._file is not None:
            self._file.close()
            if self._cost.seconds_per_update:
                run_cost.write(self._run, self._cost)


def cut(path: Path, step: int, lines: int | None) -> int:
    """Leaves those lines of a metrics.jsonl that a checkpoint of `step` vouches for, since the run writes the others anew.

    Args:
        path: the file, which may be missing.
        step: number of student updates.
        lines: number of lines that the checkpoint counts; None where it is unknown.

    Returns:
        The number of lines left.

    Raises:
        NotWritten: where it cannot be written.
    """
    kept = _vouched_for(path, step, lines) if path.exists() else []
    if len(kept) < (lines or 0):
        there = f"has {len(kept)} of the {lines} lines that were there at the checkpoint of step {step}"
        log.warning("%s: %s; the others are lost, and charts go without them", path, there)
    write_bytes(path, b"".join(line + b"\n" for line in kept))
    return len(kept)


def read(path: Path, *, strict: bool = False) -> list[Line]:
    """The lines of a metrics.jsonl; one that is none, e.g. cut short by a crash, is left out with a warning.

    Raises:
        InputError: where the file cannot be read; with `strict`, also for the first line that is none.
    """
    lines = read_lines(path, Line, strict=strict)
    return [content for _, content in lines if _has_step(path, content, strict)]


def _gigabytes() -> float:
    """Most memory that this process has used: of its GPU where it has one, else of the machine."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9  # Linux counts in kilobytes


def _has_step(path: Path, line: Line, strict: bool = False) -> bool:
    """Whether a line of metrics.jsonl has what every line has: a whole number of student updates."""
    step = line.get("step", -1.0)
    found = 0 <= step < MOST_STEPS and step == int(step)
    if strict and not found:
        raise InputError(f"{path}: a line has no step, got {str(line)[:60]}")
    return found


def _vouched_for(path: Path, step: int, count: int | None) -> Sequence[bytes]:
    """The lines of a metrics.jsonl that a checkpoint of `step` vouches for, the first `count` if that is known."""
    lines = [(line, content) for line, content in read_lines(path, Line) if _has_step(path, content)]
    return [line for line, content in lines[:count] if content["step"] <= step]
