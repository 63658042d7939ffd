"""Updates until an arm is where the baseline ends: by direction, paired by seed, and honest about never."""

import json
from dataclasses import replace

import pytest

from amd_plugin.evaluate.comparison.result import Comparison
from amd_plugin.evaluate.comparison.tables import markdown, time_to_quality
from amd_plugin.evaluate.comparison.time_to_quality import median_updates, updates_to_quality
from amd_plugin.host.running import run_log


def lines(**values):
    name, numbers = next(iter(values.items()))
    return [{"step": 1}, *({"step": 10 * place, f"held_out/{name}": number} for place, number in enumerate(numbers, 1))]


def test_an_arm_gets_there_at_its_first_evaluation_that_is_as_good():
    curves = {"dmd": lines(fd=[9, 7, 6, 5]), "amd": lines(fd=[8, 4, 6, 3]), "worse": lines(fd=[9, 9, 9, 5.1])}
    assert updates_to_quality(curves, "dmd", "fd", "down") == {"dmd": 40, "amd": 20, "worse": None}
    assert updates_to_quality(curves, "dmd", "fd", "up")["worse"] == 10
    ratios = {"dmd": lines(d=[0.5, 1.6, 1.5, 1.25]), "amd": lines(d=[0.7, 0.76, 1, 2])}
    assert updates_to_quality(ratios, "dmd", "d", "one") == {"dmd": 40, "amd": 20}


def test_runs_that_were_hardly_evaluated_say_nothing():
    assert updates_to_quality({"dmd": lines(fd=[3, 2, 1])}, "dmd", "fd", "down") == {}
    assert updates_to_quality({"dmd": [{"step": 1}]}, "dmd", "fd", "down") == {}


def test_updates_of_written_metrics_are_whole_numbers(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines(fd=[9, 7, 6, 5]))) + "\n")
    found = updates_to_quality({"dmd": run_log.read(tmp_path / "metrics.jsonl")}, "dmd", "fd", "down")
    assert json.dumps(found) == '{"dmd": 40}', "compare.json is read strictly"


@pytest.mark.parametrize(
    ("updates", "median"), [([30, 10, 20], 20), ([10, None, 30], 30), ([10, None], None), ([None, 10, None], None)]
)
def test_never_comes_last_in_the_median(updates, median):
    assert median_updates(updates) == median


def test_the_table_has_medians_and_the_seeds_that_get_there():
    both = {"tv": [1.0, 2.0]}
    comparison = Comparison(
        task="modes2d", recipe="modes2d", seeds=[0, 1], arms={"dmd": both, "amd": both}, baseline="dmd", better={"tv": "down"},
        held_out=["tv"], teacher=both, command="", updates={"tv": {"dmd": [40, 40], "amd": [20, None]}},
    )  # fmt: skip
    assert time_to_quality(comparison)[-2:] == ["| dmd | 40 (2/2) |", "| amd | never (1/2) |"]
    assert "as good as dmd at its end" in markdown(comparison)
    assert "as good as" not in markdown(replace(comparison, updates={}))
