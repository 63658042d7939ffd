"""Coverage-guided fuzzing of what reads files: recipes, and the files of a run. Anything but an error for people is a finding.

    pip install atheris
    python benchmarks/fuzz.py recipe --minutes 60
    python benchmarks/fuzz.py run --minutes 60

The corpus is in tests/data/fuzz. What a longer run adds goes to --work, and so does what failed. `tests/test_fuzz.py` mutates
the same corpus without atheris, for some seconds.
"""

import argparse
import json
import logging
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

if __name__ == "__main__":  # before libraries read it
    os.environ |= {"HF_HUB_OFFLINE": "1", "AMD_PLUGIN_LOAD": "amd"}
ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
try:
    import atheris
except ModuleNotFoundError:  # the short form does without
    atheris = None

with nullcontext() if atheris is None else atheris.instrument_imports(include=["amd_plugin", "yaml"]):
    import torch

    from amd_plugin import get_plugin_manager
    from amd_plugin.errors import AmdPluginError
    from amd_plugin.host import checkpoint
    from amd_plugin.host.running import recipe_changes, run_description, run_folder, run_log
    from amd_plugin.host.running.run_state import RunState
    from amd_plugin.recipe.loading import load

CORPUS = ROOT / "tests" / "data" / "fuzz"
FILES = ("manifest.json", "state.json", "student.safetensors", "config.yaml", "run.json", "metrics.jsonl", "evaluation.json")
PLACE = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
PLUGINS = get_plugin_manager()


def recipe(data: bytes) -> None:
    """Reads `data` as a recipe."""
    file = PLACE / "recipe.yaml"
    file.write_bytes(data)
    try:
        load(str(file), PLUGINS)
    except AmdPluginError:
        pass


def run(data: bytes) -> None:
    """Reads a whole run in which `data` stands for one file: the first byte says which."""
    if not data:
        return
    name, content, folder = FILES[data[0] % len(FILES)], data[1:], _whole_run()
    saved = folder / "checkpoints" / "step-000004"
    in_checkpoint = name in FILES[:3]
    ((saved if in_checkpoint else folder) / name).write_bytes(content)
    if in_checkpoint and name != "manifest.json":  # by somebody who knows the format
        sizes = {path.name: path.stat().st_size for path in saved.iterdir() if path.name != "manifest.json"}
        (saved / "manifest.json").write_text(json.dumps({"format": 1, "files": sizes}))
    if name == "state.json":  # the only source of a description that is lost
        (folder / "config.yaml").unlink()
    described = (lambda: run_description.repair(folder), lambda: run_description.find_run(folder, PLUGINS))
    in_saved = (lambda: checkpoint.load(saved, kind=RunState), lambda: checkpoint.newest(folder / "checkpoints"))
    readers: dict[str, tuple[Callable[[], object], ...]] = {
        "manifest.json": in_saved, "state.json": (*in_saved, described[0]), "student.safetensors": in_saved,
        "config.yaml": described, "run.json": described, "metrics.jsonl": (lambda: run_log.read(folder / "metrics.jsonl"),),
        "evaluation.json": (lambda: recipe_changes.results(folder),),
    }  # fmt: skip
    for read in readers[name]:
        try:
            read()
        except AmdPluginError:
            pass


def _whole_run() -> Path:
    """A run's folder in which everything is whole."""
    folder, kept = PLACE / "run", PLACE / "kept"
    if not kept.is_dir():
        resolved = load("modes2d", PLUGINS)
        state = {"recipe": resolved.as_dict(), "objective": {}, "plugins": {}, "name": "modes2d"}
        checkpoint.save(kept / "checkpoints", 4, {"student": torch.nn.Linear(2, 2).state_dict()}, state, keep=1)
        (kept / "config.yaml").write_text(resolved.as_yaml())
        run_folder.write_json(kept / "run.json", {"recipe": "modes2d", "objective": "amd"})
        run_folder.write_json(kept / "evaluation.json", {"precision": 0.5})
        (kept / "metrics.jsonl").write_text('{"step": 1, "loss/student": 0.5}\n')
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(kept, folder)
    return folder


TARGETS = {"recipe": recipe, "run": run}


def mutated(seeds: list[bytes], draws: random.Random) -> bytes:
    """One of the `seeds` with some bytes changed, removed, repeated, or taken from another one."""
    data = bytearray(draws.choice(seeds))
    for _ in range(draws.randint(1, 8)):
        start = draws.randrange(len(data) + 1)
        end = min(len(data), start + draws.choice((1, 1, 4, 16, 200)))
        other = draws.choice(seeds)
        cut = draws.randrange(len(other) + 1)
        data[start:end] = draws.choice((
            bytes(draws.choices(range(256), k=end - start)), b"", bytes(data[start:end]) * draws.choice((2, 2, 50)),
            other[cut : cut + draws.choice((4, 40, 400))], draws.choice((b"[", b"{", b"- ", b"9" * 60, b"\xff", b"NaN", b"~"))
            * draws.choice((1, 3, 100)),
        ))  # fmt: skip
    return bytes(data)


def seeds_of(target: str) -> list[bytes]:
    """The corpus of a target, with the shipped recipes, or with the files of a whole run."""
    own = [text.encode("latin-1") for text in json.loads((CORPUS / f"{target}.json").read_text())]
    if target == "recipe":
        return [*own, *(path.read_bytes() for path in sorted((ROOT / "recipes").glob("*.yaml")))]
    folder = _whole_run()
    paths = [next(folder.rglob(name)) for name in FILES]
    return [*own, *(bytes([index]) + path.read_bytes() for index, path in enumerate(paths))]


def main() -> None:
    """Fuzzes one target until the time is over, or something is found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument(
        "--work", type=Path, default=Path("fuzz"), help="folder for what is added to the corpus, and for findings"
    )
    arguments = parser.parse_args()
    if atheris is None:
        parser.error("needs atheris: pip install atheris")
    work = arguments.work / arguments.target
    work.mkdir(parents=True, exist_ok=True)
    for index, seed in enumerate(seeds_of(arguments.target)):
        (work / f"seed-{index:03d}").write_bytes(seed)
    logging.disable()
    options = [f"-max_total_time={int(60 * arguments.minutes)}", "-timeout=60", "-max_len=20000", "-rss_limit_mb=6000"]
    try:
        atheris.Setup(
            [sys.argv[0], *options, f"-artifact_prefix={arguments.work}/found-", str(work)], TARGETS[arguments.target]
        )
        atheris.Fuzz()
    finally:
        shutil.rmtree(PLACE, ignore_errors=True)


if __name__ == "__main__":
    main()
