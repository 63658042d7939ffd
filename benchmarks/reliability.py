"""What a run survives: kills, full disks, flipped bytes, signals, a rank that dies, and a soak with slow and failing rewards.

    python benchmarks/reliability.py --kills 500                       # all of it, resumable: run it again after a stop
    python benchmarks/reliability.py --short                           # as the tests do
    python benchmarks/reliability.py --only soak --soak 3600

Every try is a small run of modes2d in a process of its own, forked after the imports. It is disturbed, goes on with
`resume="auto"` until it is complete, and is compared with a run that nothing disturbed: every file of the newest checkpoint,
metrics.jsonl, evaluation.json and the student's weights have to be equal, byte by byte. Kills come at a random moment of the
whole run, or inside a named phase. The moment is a number of calls of functions, of which the undisturbed run says how many a
phase makes: a clock that does not depend on the machine's speed. A try is killed one to five times.

A try survived where it ended with an error for people or not at all, went on, and is equal. Results are lines of results.jsonl
in the folder --output.
"""

import argparse
import gc
import json
import os
import random
import resource
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "AMD_PLUGIN_LOAD": "amd", "TOKENIZERS_PARALLELISM": "false"}
ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from amd_plugin import get_plugin_manager, hookimpl, interrupts  # noqa: E402
from amd_plugin import recipe as recipes  # noqa: E402
from amd_plugin.errors import AmdPluginError  # noqa: E402
from amd_plugin.host import checkpoint, run  # noqa: E402
from amd_plugin.host.evaluation.evaluate import HeldOutEvaluation  # noqa: E402
from amd_plugin.host.running.run_log import RunLog  # noqa: E402
from amd_plugin.models.embedded import teacher  # noqa: E402

LAST = 6
SMALL = (
    "model.width=8", "model.teacher.steps=20", "model.teacher.batch_size=32", f"train.max_steps={LAST}", "train.batch_size=8",
    "train.group_size=4", "train.fake_updates=1", "train.log_every=4", "train.evaluate_every=3", "train.checkpoint_every=2",
    "train.trackers=[]", "evaluate.samples=80",
)  # fmt: skip
PHASES = {
    "opening the folder": (run, "open_folder"), "teacher training": (teacher, "train_teacher"),
    "writing a checkpoint": (run, "save"), "evaluation": (HeldOutEvaluation, "__call__"), "logging": (RunLog, "write"),
    "restoring": (run, "restore"), "export": (run, "_finish"),
}  # fmt: skip
ANYWHERE = "anywhere"
KINDS = ("kills", "disk", "bytes", "signals", "ranks", "soak")
LIMIT = 300.0  # seconds after which a try counts as one that hangs
TRACEBACK, TOLD, DONE = 3, 2, 0
Row = dict[str, Any]


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
    """The small run in `folder`, from wherever it stands."""
    plugins = get_plugin_manager()
    plugins.register(Rewards())
    run.train(recipes.load("modes2d", plugins, (*SMALL, *settings)), plugins, folder, resume="auto")


def interruptible(folder: Path, *settings: str) -> None:
    """As the command line runs it, which answers signals everywhere."""
    interrupts.answer()
    train(folder, *settings)


def forked(action: Callable[[], object], printed: Path) -> int:
    """Process id of a child that runs `action`, and prints to a file. It exits with what became of it."""
    gc.freeze()  # what is imported is not looked through, and so not copied, in every child
    if child := os.fork():
        return child
    code = DONE
    try:
        os.setsid()
        with printed.open("a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        action()
    except (AmdPluginError, interrupts.Interrupted) as error:
        print(f"told: {error}", flush=True)
        code = TOLD
    except BaseException:
        import traceback

        traceback.print_exc()
        code = TRACEBACK
    finally:
        os._exit(code)


def ended(child: int, limit: float = LIMIT) -> int:
    """Exit code of `child`, minus the number of the signal that ended it; -SIGALRM for one that hung, which is killed."""
    end = time.monotonic() + limit
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return -signal.SIGALRM


def die_after(seconds: float) -> None:
    """Kills this process in `seconds`, wherever it is then."""
    if not seconds:
        os.kill(os.getpid(), signal.SIGKILL)
    threading.Timer(seconds, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()


def around(place: tuple[object, str], before: Callable[[], None], after: Callable[[], None] = lambda: None) -> None:
    """Has `before` and `after` called around a function, in this process."""
    owner, name = place
    original = getattr(owner, name)

    def wrapped(*arguments: object, **options: object) -> object:
        before()
        try:
            return original(*arguments, **options)
        finally:
            after()

    setattr(owner, name, wrapped)


def strike(calls: int, seconds: float) -> None:
    """Kills this process after `calls` more calls of functions in this thread, Python's and C's, and then `seconds`."""
    left = calls

    def tick(*event: object) -> None:
        nonlocal left
        left -= 1
        if left <= 0:
            sys.setprofile(None)
            die_after(seconds)

    sys.setprofile(tick)


def counted(folder: Path, out: Path, wanted: Sequence[str]) -> None:
    """A run, with the numbers of calls in each call of the `wanted` phases in `out`."""
    ticks, calls = 0, {name: list[int]() for name in (*PHASES, ANYWHERE)}

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


def killed(folder: Path, phase: str, calls: dict[str, list[int]], draws: random.Random, environment: dict[str, str]) -> None:
    """Runs, and is killed at a random moment of a random call of a phase, of those that are left to the run."""
    os.environ.update(environment)
    done = max(map(checkpoint.step_of, (folder / "checkpoints").glob("step-*")), default=0) / LAST
    left = calls[phase][-max(1, round(len(calls[phase]) * (1 - done))) :]
    call, seconds = draws.randrange(len(left)), draws.choice((0.0, draws.uniform(0, 0.005)))  # some fall into C's calls
    if phase == ANYWHERE:
        strike(draws.randrange(int(left[0] * (1 - done)) or left[0]), seconds)
    else:
        moment, begun = draws.randrange(left[call]), list[int]()
        around(PHASES[phase], lambda: (begun.append(1), strike(moment, seconds) if len(begun) == call + 1 else None)[0])
    train(folder)


class Bench:
    """Tries of all kinds, and what became of them.

    Args:
        output: the folder of results and runs.
    """

    def __init__(self, output: Path):
        self.output, self._results = output, output / "results.jsonl"
        output.mkdir(parents=True, exist_ok=True)
        os.environ["AMD_PLUGIN_CACHE"] = str(output / "cache")
        lines = self._results.read_text().splitlines() if self._results.exists() else []
        self.rows: list[Row] = [json.loads(line) for line in lines]
        self.straight, known = output / "straight", output / "undisturbed.json"
        if not known.exists():
            known.write_text(json.dumps(self._undisturbed()))
        undisturbed = json.loads(known.read_text())
        self.calls: dict[str, list[int]] = undisturbed["calls"]
        self.seconds: float = undisturbed["seconds"]

    def _undisturbed(self) -> dict[str, Any]:
        """The calls in each phase, and the seconds, of a run that nothing disturbs."""
        calls, log, resumed = self.output / "calls.json", self.output / "straight.log", self.output / "resumed"
        shutil.rmtree(resumed, ignore_errors=True)

        def run_of(action: Callable[[], object]) -> float:
            begun = time.monotonic()
            if ended(forked(action, log)):
                raise SystemExit(f"the undisturbed run failed: {log}")
            return time.monotonic() - begun

        # The first run trains a teacher, and fills caches; most tries find them.
        first, at_resume = ["teacher training"], ["restoring"]
        others = [name for name in (*PHASES, ANYWHERE) if name not in (*first, *at_resume)]
        seconds = 0.0
        for action in (
            lambda: counted(self.straight, calls, first),
            lambda: counted(self.straight, calls, others),
            lambda: train(self.straight),
        ):
            shutil.rmtree(self.straight, ignore_errors=True)
            seconds = run_of(action)
        shutil.copytree(self.straight, resumed)
        shutil.rmtree(max((resumed / "checkpoints").iterdir()))
        run_of(lambda: counted(resumed, calls, at_resume))
        shutil.rmtree(resumed)
        return {"calls": json.loads(calls.read_text()), "seconds": seconds}

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
        row: Row = {"kind": kind, "what": what, "traceback": disturbed == TRACEBACK, "hung": disturbed == -signal.SIGALRM,
                    "differs": equal, **more}  # fmt: skip
        self.rows.append(row)
        with self._results.open("a") as file:
            file.write(json.dumps(row) + "\n")
        if not (row["traceback"] or row["hung"] or equal):
            shutil.rmtree(folder.parent)

    def complete(self, folder: Path, log: Path, **environment: str) -> str:
        """Goes on with the run until its end; how it differs from the straight run, or why there is nothing to compare."""
        code = ended(forked(lambda: (os.environ.update(environment), train(folder)), log))
        return f"the run did not go on: exit code {code}" if code else different(self.straight, folder)

    def kills(self, count: int) -> None:
        """Kills at random moments and inside each phase."""
        names = [*PHASES, ANYWHERE]
        for index, draws, folder, log in self.tries("kills", count):
            phase, fresh = names[index % len(names)], {}
            if phase == "teacher training":
                fresh = {"AMD_PLUGIN_CACHE": str(folder.parent / "cache")}
            if phase == "restoring":
                ended(forked(partial(killed, folder, "export", self.calls, draws, {}), log))
            worst, kills = DONE, 0
            for _ in range(draws.randint(1, 5)):
                act = partial(killed, folder, phase, self.calls, random.Random(draws.random()), fresh)
                if (code := ended(forked(act, log))) == DONE:  # the phase was over
                    break
                kills += code == -signal.SIGKILL
                worst = code if code not in (DONE, -signal.SIGKILL) else worst
            self.record("kills", phase, folder, worst, self.complete(folder, log, **fresh), kills=kills)

    def disk(self, count: int) -> None:
        """A file-size limit, as of a quota or a full disk, below that of some file of the run."""
        sizes = sorted({path.stat().st_size for path in self.straight.rglob("*") if path.is_file()})
        for _, draws, folder, log in self.tries("disk", count):
            limit = draws.choice(sizes) - 1

            def limited(folder: Path = folder, limit: int = limit) -> None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
                train(folder)

            code = ended(forked(limited, folder.parent / "limited.log"))
            self.record("disk", "file size limit", folder, code, self.complete(folder, log), limit=limit)

    def bytes(self, count: int) -> None:
        """A flipped bit in a file of a checkpoint, in a description, or in the cached teacher."""
        for _, draws, folder, log in self.tries("bytes", count):
            shutil.copytree(self.straight, folder)
            cache = folder.parent / "cache"
            shutil.copytree(self.output / "cache", cache)
            (folder / "evaluation.json").unlink()
            newest = max((folder / "checkpoints").iterdir())
            places = [*newest.iterdir(), *cache.glob("teacher-*/*"), folder / "config.yaml", folder / "run.json"]
            file = draws.choice([path for path in places if path.is_file()])
            content = bytearray(file.read_bytes())
            content[draws.randrange(len(content))] ^= 1 << draws.randrange(8)
            file.write_bytes(content)
            equal = self.complete(folder, log, AMD_PLUGIN_CACHE=str(cache))
            if file.name == "config.yaml" and equal.endswith(
                f"exit code {TOLD}"
            ):  # a value that is another one now: it was told
                file.unlink()
                equal = self.complete(folder, log, AMD_PLUGIN_CACHE=str(cache))
            self.record("bytes", file.name, folder, DONE, equal)

    def signals(self, count: int) -> None:
        """SIGTERM or SIGINT at a random moment, once or repeated at once."""
        for _, draws, folder, log in self.tries("signals", count):
            signum, times = draws.choice((signal.SIGTERM, signal.SIGINT)), draws.choice((1, 3))
            child = forked(partial(interruptible, folder), log)
            time.sleep(draws.uniform(0.2, max(0.3, self.seconds)))
            for _ in range(times):
                try:
                    os.kill(child, signum)
                except ProcessLookupError:
                    break
            code = ended(child)
            self.record("signals", f"{signum.name} x {times}", folder, code, self.complete(folder, log))

    def ranks(self, count: int) -> None:
        """Two processes, one of which is killed; the other one has to end, and both go on."""
        twins = self.output / "two"
        if not (twins / "evaluation.json").exists():
            shutil.rmtree(twins, ignore_errors=True)
            if any(ended(child) for child in pair(twins, self.output / "two.log")):
                raise SystemExit(f"the undisturbed run of two processes failed: {self.output / 'two.log'}")
        for _, draws, folder, log in self.tries("ranks", count):
            children, victim = pair(folder, log), draws.randrange(2)
            time.sleep(draws.uniform(0.3, 1.5 * self.seconds))
            os.kill(children[victim], signal.SIGKILL)
            ended(children[victim])
            code = ended(children[1 - victim], 120)
            codes = [ended(child) for child in pair(folder, log)]
            equal = f"exit codes {codes}" if any(codes) else different(twins, folder)
            self.record("ranks", f"process {victim} of 2", folder, code, equal)

    def soak(self, seconds: float) -> None:
        """A long run with slow and failing rewards; memory, open files and processes at its beginning and its end."""
        for _, _, folder, log in self.tries("soak", 1):
            rewards = "rewards=[{name: classifier, pool: 1}, {name: slow}, {name: failing, on_error: neutral}]"
            long = (
                "train.max_steps=10000000",
                "train.evaluate_every=50",
                "train.checkpoint_every=50",
                "train.max_failed_rewards=1",
            )
            child = forked(partial(interruptible, folder, rewards, *long), log)
            seen, end = list[tuple[float, int, int]](), time.monotonic() + seconds
            while time.monotonic() < end and (sample := watched(child)):
                seen.append(sample)
                time.sleep(min(5.0, seconds / 10))
            os.kill(child, signal.SIGTERM)
            code = ended(child)
            settled = seen[len(seen) // 4] if seen else (0.0, 0, 0)  # libraries load what they need in the first updates
            steps = checkpoint.step_of(
                max((folder / "checkpoints").glob("step-*"), default=Path("none"), key=checkpoint.step_of)
            )
            self.record(
                "soak", f"{seconds:.0f} s", folder, code, "" if code == TOLD else f"exit code {code}", steps=steps,
                megabytes=[settled[0], seen[-1][0]], files=[settled[1], seen[-1][1]], processes=[settled[2], seen[-1][2]],
            )  # fmt: skip

    def table(self) -> str:
        """All results, by kind and place."""
        lines = ["| kind | where | tries | survived, equal to the bit | traceback | hung |", "|---|---|---|---|---|---|"]
        groups: dict[tuple[int, str], list[Row]] = {}
        for row in self.rows:
            where = str(row["what"]) if row["kind"] in ("kills", "ranks", "signals") else "all"
            groups.setdefault((KINDS.index(str(row["kind"])), where), []).append(row)
        for (kind, where), rows in sorted(groups.items()):
            numbers = [len(rows), sum(not wrong(row) for row in rows)]
            numbers += [sum(bool(row[name]) for row in rows) for name in ("traceback", "hung")]
            kills = f" ({sum(row['kills'] for row in rows)} kills)" if KINDS[kind] == "kills" else ""
            lines.append(f"| {KINDS[kind]} | {where}{kills} | {' | '.join(map(str, numbers))} |")
        for row in self.rows:
            if row["kind"] == "soak":
                grown = ", ".join(f"{name} {row[name]}" for name in ("steps", "megabytes", "files", "processes"))
                lines.append(f"\nsoak of {row['what']}: {grown} (after a quarter of the time, at the end)")
        return "\n".join(lines)


def wrong(row: Row) -> bool:
    """Whether a try did not survive."""
    return bool(row["differs"] or row["traceback"] or row["hung"])


def pair(folder: Path, log: Path) -> list[int]:
    """Two processes of one run, as a launcher starts them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])

    def rank(index: int) -> None:
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, WORLD_SIZE="2", RANK=str(index), LOCAL_RANK=str(index))
        train(folder, "distributed.timeout=60")

    return [forked(lambda i=index: rank(i), log) for index in range(2)]


def different(one: Path, two: Path) -> str:
    """The files by which two complete runs differ, and where that began; empty where they are equal."""
    newest = max((one / "checkpoints").iterdir()).name
    files = [*sorted((one / "checkpoints" / newest).iterdir()), *sorted((one / "student").rglob("*.safetensors"))]
    files += [one / "metrics.jsonl", one / "evaluation.json"]
    names = [str(file.relative_to(one)) for file in files if not _equal(file, two / file.relative_to(one))]
    return f"{', '.join(names)}; first in {_first_difference(one, two)}" if names else ""


def _equal(one: Path, two: Path) -> bool:
    return two.is_file() and one.read_bytes() == two.read_bytes()


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


def watched(process: int) -> tuple[float, int, int] | None:
    """(megabytes, open files, processes) of `process` and its children; None where it has ended."""
    try:
        status = Path(f"/proc/{process}/statm").read_text().split()
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
        megabytes = int(status[1]) * resource.getpagesize() / 1e6
        return round(megabytes, 1), len(os.listdir(f"/proc/{process}/fd")), 1 + len(children)
    except (OSError, IndexError):
        return None


def main() -> int:
    """Does what is asked for and not done yet, and prints the table; 1 where something did not survive."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=500, help="processes killed, one to five in a try")
    parser.add_argument("--faults", type=int, default=40, help="tries each of full disks, flipped bytes and signals")
    parser.add_argument("--ranks", type=int, default=20, help="tries with two processes, one of which is killed")
    parser.add_argument("--soak", type=float, default=3600, help="seconds")
    parser.add_argument("--only", choices=KINDS, action="append")
    parser.add_argument("--short", action="store_true", help="50 kills, 2 of each fault, a soak of 15 s")
    parser.add_argument("--output", type=Path, default=Path("runs") / "reliability")
    given = parser.parse_args()
    kills, faults, ranks, soak = (50, 2, 1, 15) if given.short else (given.kills, given.faults, given.ranks, given.soak)
    bench = Bench(given.output.absolute())
    counts = {"kills": kills, "disk": faults, "bytes": faults, "signals": faults, "ranks": ranks, "soak": soak}
    for kind in given.only or KINDS:
        getattr(bench, kind)(counts[kind])
    print(bench.table())
    bad = [row for row in bench.rows if wrong(row)]
    for row in bad:
        print(json.dumps(row))
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
