"""The faults of reliability.py, a function each: it makes so many tries on a bench, and records what became of them."""

import os
import random
import resource
import shutil
import signal
import socket
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from reliability_bench import Bench
from reliability_processes import DONE, TOLD, ended, forked, watched
from reliability_run import EXPORT, PLACES, RESTORING, TEACHER, different, struck, train

from amd_plugin.host import checkpoint

TIMEOUT = "distributed.timeout=60"
OF_THE_FIRST = ("opening the folder", TEACHER, EXPORT)  # phases that the first of several processes has alone, or may have


def kills(bench: Bench, count: int) -> None:
    """SIGKILL at random moments and inside each phase, one to five times in a row."""
    for index, draws, folder, log in bench.tries("kills", count):
        phase = PLACES[index % len(PLACES)]
        fresh = own_cache(folder) if phase == TEACHER else {}
        if phase == RESTORING:
            ended(forked(partial(struck, folder, EXPORT, bench.calls, draws), log))
        worst, killed = DONE, 0
        for _ in range(draws.randint(1, 5)):
            act = partial(struck, folder, phase, bench.calls, random.Random(draws.random()))
            if (code := ended(forked(act, log, **fresh))) == DONE:  # the phase was over
                break
            killed += code == -signal.SIGKILL
            worst = code if code != -signal.SIGKILL else worst
        bench.record("kills", phase, folder, worst, bench.complete(folder, log, **fresh), kills=killed)


def disk(bench: Bench, count: int) -> None:
    """A limit on the size of files, as of a quota or a full disk, below that of some file of the run."""
    sizes = sorted({path.stat().st_size for path in bench.straight.rglob("*") if path.is_file()})
    for _, draws, folder, log in bench.tries("disk", count):
        limit = draws.choice(sizes) - 1

        def limited(folder: Path = folder, limit: int = limit) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            train(folder)

        code = ended(forked(limited, folder.parent / "limited.log"))
        # A picture or samples that the disk did not take are done without, and an evaluation is not made twice for them.
        equal = bench.complete(folder, log, lacks=("samples/", "student/samples."))
        bench.record("disk", "file size limit", folder, code, equal, limit=limit)


def flipped(bench: Bench, count: int) -> None:
    """A flipped bit in a file of a checkpoint, in a description, or in the cached teacher."""
    for _, draws, folder, log in bench.tries("bytes", count):
        shutil.copytree(bench.straight, folder)
        own = own_cache(folder)
        cache = Path(own["AMD_PLUGIN_CACHE"])
        shutil.copytree(bench.cache, cache)
        (folder / "evaluation.json").unlink()
        newest = max((folder / "checkpoints").iterdir())
        places = [*newest.iterdir(), *cache.glob("teacher-*/*"), folder / "config.yaml", folder / "run.json"]
        file = draws.choice([path for path in places if path.is_file()])
        content = bytearray(file.read_bytes())
        content[draws.randrange(len(content))] ^= 1 << draws.randrange(8)
        file.write_bytes(content)
        equal = bench.complete(folder, log, **own)
        # A value that is another one now, of the recipe or of what it depends on: it was told.
        if file.name in ("config.yaml", "run.json") and equal.endswith(f"exit code {TOLD}"):
            file.unlink()
            equal = bench.complete(folder, log, **own)
        bench.record("bytes", file.name, folder, DONE, equal)


def signals(bench: Bench, count: int) -> None:
    """SIGTERM, SIGINT or SIGHUP at a random moment of a phase, once or repeated at once."""
    for index, draws, folder, log in bench.tries("signals", count):
        phase, signum, times = PLACES[index % len(PLACES)], draws.choice((15, 2, 1)), draws.choice((1, 3))
        fresh = own_cache(folder) if phase == TEACHER else {}
        if phase == RESTORING:
            ended(forked(partial(struck, folder, EXPORT, bench.calls, draws), log))
        code = ended(forked(partial(struck, folder, phase, bench.calls, draws, signum=signum, times=times), log, **fresh))
        what = f"{signal.Signals(signum).name} x {times}"
        bench.record("signals", phase, folder, code, bench.complete(folder, log, **fresh), signal=what)


def ranks(bench: Bench, count: int) -> None:
    """Two processes, one of which is killed in a phase; the other one has to end, and both go on."""
    twins = bench.output / "two"
    if not (twins / "evaluation.json").exists():
        shutil.rmtree(twins, ignore_errors=True)
        bench.undisturbed("two", *pair(twins))
    places = [(phase, victim) for phase in PLACES for victim in (0, 1) if not (victim and phase in OF_THE_FIRST)]
    for index, draws, folder, log in bench.tries("ranks", count):
        phase, victim = places[index % len(places)]
        fresh = own_cache(folder) if phase == TEACHER else {}

        def both(victim: int = -1, phase: str = "", folder: Path = folder, log: Path = log,
                 fresh: dict[str, str] = fresh, draws: random.Random = draws) -> list[int]:  # fmt: skip
            killed = partial(struck, folder, phase, bench.calls, draws, (TIMEOUT,))
            return [ended(child) for child in [forked(rank, log, **fresh) for rank in pair(folder, victim, killed)]]

        if phase == RESTORING:
            both(0, EXPORT)
        codes, again = both(victim, phase), both()
        equal = f"exit codes {again}" if any(again) else different(twins, folder)
        # The second process makes fewer calls than the undisturbed run that was counted: the moment may be after its end.
        missed = "" if codes[victim] == -signal.SIGKILL else ", which was over before"
        bench.record("ranks", f"{phase}, process {victim} of 2{missed}", folder, codes[1 - victim], equal, codes=codes)


def soak(bench: Bench, seconds: float) -> None:
    """A long run with slow and failing rewards; processes, and what the main one holds, early and at the end."""
    settings = (
        "rewards=[{name: classifier, pool: 1}, {name: slow}, {name: failing, on_error: neutral}]", "train.max_failed_rewards=1",
        "train.max_steps=10000000", "train.evaluate_every=50", "train.checkpoint_every=50",
    )  # fmt: skip
    for _, _, folder, log in bench.tries("soak", 1):
        child = forked(partial(train, folder, *settings), log)
        seen, end = list[tuple[float, int, int]](), time.monotonic() + seconds
        while time.monotonic() < end and (sample := watched(child)):
            seen.append(sample)
            time.sleep(min(5.0, seconds / 10))
        os.kill(child, signal.SIGTERM)
        code = ended(child)
        seen = seen or [(0.0, 0, 0)]
        settled = seen[len(seen) // 4]  # libraries load what they need in the first updates
        steps = max(map(checkpoint.step_of, (folder / "checkpoints").glob("step-*")), default=0)
        bench.record(
            "soak", f"{seconds:.0f} s", folder, code, "" if code == TOLD else f"exit code {code}", steps=steps,
            megabytes=[settled[0], seen[-1][0]], files=[settled[1], seen[-1][1]], processes=[settled[2], seen[-1][2]],
        )  # fmt: skip


def own_cache(folder: Path) -> dict[str, str]:
    """The environment of a run with an own cache, in which everything has to be made."""
    return {"AMD_PLUGIN_CACHE": str(folder.parent / "cache")}


def pair(folder: Path, victim: int = -1, killed: Callable[[], object] | None = None) -> list[Callable[[], object]]:
    """Two processes of one run, as a launcher starts them; where one is the `victim`, it does `killed` instead."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])

    def rank(index: int) -> None:
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, WORLD_SIZE="2", RANK=str(index), LOCAL_RANK=str(index))
        if killed is not None and index == victim:
            killed()
        else:
            train(folder, TIMEOUT)

    return [partial(rank, index) for index in range(2)]
