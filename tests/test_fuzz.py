"""Thousands of mutated recipes and run folders end in an error for people; here a few hundred, of benchmarks/fuzz.py's corpus."""

import random
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = str(Path(__file__).parents[1] / "benchmarks" / "fuzz.py")


@pytest.fixture(scope="module")
def fuzz():
    script = runpy.run_path(SCRIPT)
    yield script
    shutil.rmtree(script["PLACE"])


@pytest.mark.parametrize(("target", "count"), [("recipe", 150), ("run", 60)])
def test_what_is_damaged_is_told(fuzz, target, count, caplog):
    draws = random.Random(target)
    seeds = fuzz["seeds_of"](target)
    for seed in (*seeds, *(fuzz["mutated"](seeds, draws) for _ in range(count))):
        fuzz["TARGETS"][target](seed)  # raises whatever is no error for people


def test_commands_on_a_run_with_a_changed_file_end_in_words(tmp_path):
    script = Path(SCRIPT).with_name("mutations.py")
    done = subprocess.run(
        [sys.executable, script, "--tries", "12", "--output", tmp_path], capture_output=True, text=True, timeout=1500
    )
    assert done.returncode == 0 and "12 tries, 0 found" in done.stdout, done.stdout + done.stderr
