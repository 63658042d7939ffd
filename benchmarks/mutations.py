"""Whole commands on small runs in which one file has changed: other values, keys that are gone, nesting, cuts, bytes.

    python benchmarks/mutations.py --tries 3000

Anything but an end in words is a finding: a traceback, another exit code than 0, 1 or 2, or more than two minutes of a
processor, or half an hour of a clock: machines that do this are busy. What was found is kept below --output. Changed are a
run, a comparison, the dump of an update that was not finite, and the cache, which no command may need. Manifests are made to
fit, as by somebody who knows the format. `benchmarks/fuzz.py` is faster, and reads the same files without the commands around
them.
"""

import argparse
import gc
import json
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # before libraries read it
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "AMD_PLUGIN_LOAD": "amd", "TOKENIZERS_PARALLELISM": "false"}
ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import yaml  # noqa: E402

from amd_plugin import cli  # noqa: E402
from amd_plugin.host.checkpoint import write_manifest  # noqa: E402

IMPORTED = (
    "evaluate.comparison.compare", "evaluate.report.report", "evaluate.students.evaluation", "host.run",
    "host.running.replay", "host.running.run_check",
)  # fmt: skip  # before any fork

SMALL = (
    "model.width=8", "model.teacher.steps=20", "model.teacher.batch_size=32", "train.max_steps=4", "train.batch_size=8",
    "train.group_size=4", "train.fake_updates=1", "train.log_every=1", "train.evaluate_every=2", "train.checkpoint_every=2",
    "train.trackers=[]", "evaluate.samples=80",
)  # fmt: skip
SET = tuple(f"--set={setting}" for setting in SMALL)
NEWEST, DUMP, SEED = "run/checkpoints/step-000004", "diverged/nonfinite/*", "comparison/arms/amd/seed-0"
COMMANDS: dict[str, Callable[[Path], tuple[object, ...]]] = {
    "train": lambda folder: ("train", "modes2d", *SET, "--output", folder / "run"),
    "diverge": lambda folder: ("train", "modes2d", *SET, "--set=train.student_lr=1e30", "--output", folder / "diverged"),
    "go on": lambda folder: ("train", "--resume", folder / "run", "--set=train.max_steps=5"),
    "resume": lambda folder: ("train", "--resume", folder / "run"),
    "start": lambda folder: ("train", "modes2d", *SET, "--output", folder / "another"),
    "export": lambda folder: ("export", folder / "run"),
    "evaluate": lambda folder: ("evaluate", folder / "run", "--samples=40"),
    "report": lambda folder: ("report", folder / "run"),
    "doctor": lambda folder: ("doctor", folder / "run"),
    "compare": lambda folder: (
        "compare", "modes2d", "--objectives=dmd,amd", "--seeds=1", "--workers=1", *SET, "--output", folder / "comparison"
    ),
    "report both": lambda folder: ("report", folder / "comparison"),
    "replay": lambda folder: ("replay", next(folder.glob(DUMP))),
}  # fmt: skip
READERS = {
    f"{NEWEST}/state.json": ("go on", "export", "evaluate", "doctor"),
    f"{NEWEST}/manifest.json": ("go on", "export", "doctor"),
    f"{NEWEST}/ema.safetensors": ("go on", "export", "evaluate"),
    "run/config.yaml": ("go on", "export", "report", "doctor"),
    "run/run.json": ("go on", "report", "doctor"),
    "run/metrics.jsonl": ("go on", "export", "report", "doctor"),
    "run/evaluation.json": ("resume", "report", "doctor"),
    "run/evaluation/drawn.json": ("evaluate",),
    "run/evaluation/pairs.json": ("report",),
    "run/samples/latest.safetensors": ("report", "doctor"),
    "run/student/checksums.json": ("go on", "export", "doctor"),
    "comparison/compare.json": ("compare", "report both"),
    f"{SEED}/config.yaml": ("compare", "report both"),
    f"{SEED}/evaluation.json": ("compare", "report both"),
    f"{SEED}/metrics.jsonl": ("compare", "report both"),
    f"{SEED}/samples/latest.safetensors": ("report both",),
    f"{DUMP}/*.json": ("replay",),
    f"{DUMP}/*.safetensors": ("replay",),
    "cache/*/*.*": ("start", "evaluate", "replay", "report"),
}
VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 2**31, 2**53, 2**64, 10**400, 1e308, -0.0, float("nan"), float("inf"), "", "x", "1e5", "/etc/passwd",
    "../../x", "\x00", "\x1b[31m", "a" * 300, [], {}, [[]], {"": None}, {"tensor": "x"}, {"plain": None}, ["x"] * 1000,
)  # fmt: skip


def places(value: Any, prefix: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in plain values."""
    if prefix:
        yield prefix
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*prefix, key))


def other_value(value: Any, draws: random.Random) -> Any:
    """`value` with some values in it replaced, removed, repeated or renamed; near its top more often than below."""
    for _ in range(draws.choice((1, 1, 1, 2, 4))):
        found = list(places(value))
        if not found:
            return draws.choice(VALUES)
        *above, key = draws.choice([place for place in found if len(place) <= draws.choice((2, 3, 99))] or found)
        holder = value
        for step in above:
            holder = holder[step]
        match draws.randrange(5):
            case 0:
                del holder[key]
            case 1 if isinstance(holder, list):
                holder.insert(key, holder[key])
            case 1:
                holder[draws.choice(("x", "", f"{key}_", "step"))] = holder.pop(key)
            case _:
                holder[key] = json.loads(json.dumps(draws.choice(VALUES)))
    return value


def other_bytes(content: bytes, draws: random.Random) -> bytes:
    """`content` cut, replaced, in another encoding, nested, with a long number, or with some bytes flipped."""
    at = draws.randrange(len(content) + 1)
    flipped = bytearray(content)
    for _ in range(draws.randint(1, 10)):
        flipped[draws.randrange(len(flipped))] ^= 1 << draws.randrange(8)
    return draws.choice((
        content[:at], draws.randbytes(200), content.decode("latin-1").encode("utf-16"), b"\xef\xbb\xbf" + content,
        bytes(flipped),
        content[:at] + b"[" * 3000 + content[at:], content.replace(b"0", b"9" * 5000, 1), content.replace(b":", b": NaN,", 1),
    ))  # fmt: skip


def mutated(name: str, content: bytes, draws: random.Random) -> bytes:
    """The file `name` of a run with another content."""
    if not name.endswith((".json", ".jsonl", ".yaml")) or draws.random() < 0.25:
        return other_bytes(content, draws)
    if name.endswith(".yaml"):
        return yaml.safe_dump(other_value(yaml.safe_load(content), draws), sort_keys=False).encode()
    if name.endswith(".jsonl"):
        lines = other_value([json.loads(line) for line in content.splitlines()], draws)
        return b"".join(json.dumps(line).encode() + b"\n" for line in (lines if isinstance(lines, list) else [lines]))
    return json.dumps(other_value(json.loads(content), draws)).encode()


def command(name: str, folder: Path, printed: Path) -> int:
    """Runs a command in a process of its own, with the cache in `folder`; its exit code, or minus the signal that ended it."""
    gc.freeze()  # what is imported is not looked through, and so not copied, in every child
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 99
    try:
        file = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        signal.setitimer(signal.ITIMER_PROF, 120)
        signal.alarm(1800)
        os.environ["AMD_PLUGIN_CACHE"] = str(folder / "cache")
        sys.argv = ["amd-plugin", *map(str, COMMANDS[name](folder))]
        cli.main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 98
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def main() -> int:
    """Tries as often as is asked for; 1 where something was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs") / "mutations")
    given = parser.parse_args()
    for name in IMPORTED:
        import_module(f"amd_plugin.{name}")
    place = given.output.absolute()
    place.mkdir(parents=True, exist_ok=True)
    whole, folder, printed = place / "whole", place / "changed", place / "printed.txt"
    if not any(whole.glob(DUMP)):
        shutil.rmtree(whole, ignore_errors=True)
        for name in ("train", "evaluate", "compare", "diverge"):
            if command(name, whole, printed) != (1 if name == "diverge" else 0):
                raise SystemExit(f"what is to be changed could not be made: {printed}")
    draws, found = random.Random(given.seed), 0
    for index in range(given.tries):
        pattern = draws.choice(list(READERS))
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(whole, folder)
        changed = draws.choice(sorted(folder.glob(pattern)))
        name = str(changed.relative_to(folder))
        changed.write_bytes(mutated(name, changed.read_bytes(), draws))
        if pattern.startswith((NEWEST, DUMP)) and changed.name != "manifest.json":
            write_manifest(changed.parent)
        if draws.random() < 0.5:  # nothing else to go on from
            shutil.rmtree(folder / "run" / "checkpoints" / "step-000002")
        if not name.endswith("evaluation.json"):
            (folder / "run" / "evaluation.json").unlink()
        what = draws.choice(READERS[pattern])
        code = command(what, folder, printed)
        if code not in (0, 1, 2) or "Traceback" in printed.read_text(errors="replace"):
            found += 1
            kept = place / f"found-{index:05d}"
            shutil.copytree(folder, kept, dirs_exist_ok=True)
            shutil.copy(printed, kept / "printed.txt")
            print(f"{what}, {name}: exit code {code}: {kept}", flush=True)
        if (index + 1) % 50 == 0 or index + 1 == given.tries:
            print(f"{index + 1} tries, {found} found", flush=True)
    return int(found > 0)


if __name__ == "__main__":
    sys.exit(main())
