"""What a run tells the world while it runs: metrics.jsonl, trackers, a progress bar or plain lines."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

log = logging.getLogger(__name__)


class RunLog:
    """Collects the metrics of every step, and writes their mean over each logging interval.

    Args:
        path: metrics.jsonl; lines of steps after `step` are dropped, since a resumed run writes them anew.
        step, max_steps: where the run stands and where it ends.
        accelerator: averages over processes, forwards to trackers.
        console: where progress goes; a bar on a terminal, lines elsewhere; quiet where None.
    """

    def __init__(self, path: Path, step: int, max_steps: int, accelerator: Accelerator, console: Console | None):
        self._accelerator, self._max_steps, self._console = accelerator, max_steps, console
        self._window: list[dict[str, Tensor]] = []
        self.last: dict[str, float] = {}
        self._file = self._bar = None
        if accelerator.is_main_process:
            kept = [line for line in path.read_text().splitlines() if _step(line) <= step] if path.exists() else []
            path.write_text("".join(f"{line}\n" for line in kept))
            self._file = path.open("a")
            if console is not None and console.is_terminal:
                columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
                self._bar = Progress(*columns, TextColumn("{task.fields[note]}"), console=console)
                self._row = self._bar.add_task("distilling", total=max_steps, completed=step, note="")
                self._bar.start()

    def add(self, metrics: Mapping[str, Tensor]) -> None:
        """Takes one step's metrics, without reading them off the device."""
        self._window.append(dict(metrics))

    def write(self, step: int) -> dict[str, float]:
        """The means since the last call, over steps and processes; written and shown. Call on every process."""
        names = sorted({name for metrics in self._window for name in metrics})
        if not names:
            return {}
        # What one process has no value of, e.g. because none of its samples is at that noise level, others may have.
        means = torch.stack([torch.stack([m[n].float() for m in self._window if n in m]).nanmean() for n in names])
        known = ~means.isnan()
        both = torch.stack((torch.where(known, means, 0.0), known.float())).to(self._accelerator.device)
        total, count = self._accelerator.reduce(both, "sum")
        means = total / count
        self._window.clear()
        self.last = dict(zip(names, means.tolist(), strict=True))
        self.record(step, self.last)
        student, fake = (self.last.get(f"loss/{role}", float("nan")) for role in ("student", "fake_score"))
        note = f"student {student:.4f}  fake {fake:.4f}"
        if self._bar is not None:
            self._bar.update(self._row, completed=step, note=note)
        elif self._console is not None and self._accelerator.is_main_process:
            self._console.print(f"step {step}/{self._max_steps}  {note}", highlight=False)
        return self.last

    def record(self, step: int, values: Mapping[str, float]) -> None:
        """One line of metrics.jsonl, and the trackers."""
        if self._file is not None:
            finite = {name: value for name, value in values.items() if value == value}
            self._file.write(json.dumps({"step": step, **finite}) + "\n")
            self._file.flush()
            self._accelerator.log(finite, step=step)

    def close(self) -> None:
        """Stops the bar and closes the file."""
        if self._bar is not None:
            self._bar.stop()
        if self._file is not None:
            self._file.close()


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; a last line cut short by a crash is left out."""
    lines = []
    for line in path.read_text().splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            log.warning("%s: a line is not JSON and is left out", path)
    return lines


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
