"""What all faults of reliability.py share: the undisturbed run, the tries that are not done yet, and what became of each."""

import json
import os
import random
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from reliability_processes import HUNG, TRACEBACK, ended, forked
from reliability_run import PLACES, RESTORING, TEACHER, counted, different, train

from amd_plugin.atomic import write_bytes
from amd_plugin.checksums import checksum

Row = dict[str, Any]


class Bench:
    """Tries of all kinds, and what became of them.

    Args:
        output: the folder of results and runs.

    Attributes:
        cache: the cache of all tries that do not make one of their own.
        rows: results of tries.
        straight: the run that nothing disturbed.
        calls: place -> calls of functions in each of its calls in such a run.
    """

    def __init__(self, output: Path):
        self.output, self._results, self.cache = output, output / "results.jsonl", output / "cache"
        output.mkdir(parents=True, exist_ok=True)
        os.environ["AMD_PLUGIN_CACHE"] = str(self.cache)
        lines = self._results.read_text().splitlines() if self._results.exists() else []
        self.rows: list[Row] = [json.loads(line) for line in lines]
        self.straight, known = output / "straight", output / "phases.json"
        if not known.exists():
            self._undisturbed().replace(known)
        self.calls: dict[str, list[int]] = json.loads(known.read_text())

    def _undisturbed(self) -> Path:
        """A file with the calls in each phase of a run that nothing disturbs."""
        calls, resumed = self.output / "calls.json", self.output / "resumed"
        # The first run trains a teacher, and fills caches; most tries find them.
        first, at_resume = [TEACHER], [RESTORING]
        others = [name for name in PLACES if name not in (*first, *at_resume)]
        for action in (
            lambda: counted(self.straight, calls, first),
            lambda: counted(self.straight, calls, others),
            lambda: train(self.straight),
        ):
            shutil.rmtree(self.straight, ignore_errors=True)
            self.undisturbed("straight", action)
        shutil.rmtree(resumed, ignore_errors=True)
        shutil.copytree(self.straight, resumed)
        shutil.rmtree(max((resumed / "checkpoints").iterdir()))
        self.undisturbed("resumed", lambda: counted(resumed, calls, at_resume))
        shutil.rmtree(resumed)
        return calls

    def undisturbed(self, name: str, *actions: Callable[[], object]) -> None:
        """Runs `actions` side by side to their end."""
        log = self.output / f"{name}.log"
        if any([ended(child) for child in [forked(action, log) for action in actions]]):
            raise SystemExit(f"the undisturbed run failed: {log}")

    def tries(self, kind: str, count: int) -> Iterator[tuple[int, random.Random, Path, Path]]:
        """(index, draws, empty place, log) of tries of `kind` that are not done yet; of kills, until there are `count`."""
        while (index := len(made := [row for row in self.rows if row["kind"] == kind])) < count:
            if sum(row.get("kills", 1) for row in made) >= count:
                return
            folder = self.output / f"{kind}-{index:04d}"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            yield index, random.Random(f"{kind} {index}"), folder / "run", folder / "log.txt"

    def record(self, kind: str, what: str, folder: Path, disturbed: int, equal: str, **more: object) -> None:
        """Adds the result of a try, and removes its folder unless something is to be seen in it."""
        row: Row = {"kind": kind, "what": what, "traceback": disturbed == TRACEBACK, "hung": disturbed == HUNG,
                    "differs": equal, **more}  # fmt: skip
        self.rows.append(row)
        with self._results.open("a") as file:
            file.write(json.dumps(row) + "\n")
        if not wrong(row):
            shutil.rmtree(folder.parent)

    def complete(self, folder: Path, log: Path, lacks: tuple[str, ...] = (), **environment: str) -> str:
        """Goes on with the run until its end; how it differs from the straight run, or why there is nothing to compare.

        Args:
            folder: the run.
            log: file of what it prints.
            lacks: see `different`.
            environment: environment variables of the process.
        """
        code = ended(forked(lambda: train(folder), log, **environment))
        return f"the run did not go on: exit code {code}" if code else different(self.straight, folder, lacks)

    def table(self) -> str:
        """All results, by kind and place."""
        lines = ["| kind | where | tries | survived, equal to the bit | traceback | hung |", "|---|---|---|---|---|---|"]
        groups: dict[tuple[str, str], list[Row]] = {}
        for row in self.rows:
            where = str(row["what"]) if row["kind"] in ("kills", "ranks", "signals") else "all"
            groups.setdefault((row["kind"], where), []).append(row)
        for (kind, where), rows in sorted(groups.items()):
            numbers = [len(rows), sum(not wrong(row) for row in rows)]
            numbers += [sum(row[name] for row in rows) for name in ("traceback", "hung")]
            kills = f" ({sum(row['kills'] for row in rows)} kills)" if kind == "kills" else ""
            lines.append(f"| {kind} | {where}{kills} | {' | '.join(map(str, numbers))} |")
        for row in self.rows:
            if row["kind"] == "soak":
                grown = ", ".join(f"{name} {row[name]}" for name in ("steps", "megabytes", "files", "processes"))
                lines.append(f"\nsoak of {row['what']}: {grown} (after a quarter of the time, at the end)")
        return "\n".join(lines)


def cost_of_checksums(folder: Path, megabytes: int = 512, times: int = 5) -> str:
    """What the checksums of a file take beside the writing of it, in words; medians of some times."""
    content, file = os.urandom(megabytes * 10**6), folder / "content"
    written, hashed = list[float](), list[float]()
    for _ in range(times):
        start = time.monotonic()
        write_bytes(file, content)
        between = time.monotonic()
        checksum(file)
        written.append(between - start)
        hashed.append(time.monotonic() - between)
    file.unlink()
    write, look = statistics.median(written), statistics.median(hashed)
    speeds = f"written at {megabytes / write:,.0f} MB/s and read for its checksum at {megabytes / look:,.0f} MB/s"
    return f"a file of {megabytes} MB is {speeds}, in {look / write:.0%} of the time; median of {times}"


def wrong(row: Row) -> bool:
    """Whether a try did not survive."""
    return bool(row["differs"] or row["traceback"] or row["hung"])
