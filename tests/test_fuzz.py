"""Thousands of mutated recipes and run folders end in an error for people; here a few hundred, of benchmarks/fuzz.py's corpus."""

import random
import runpy
import shutil
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
