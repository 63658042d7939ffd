"""What a comparison holds: its file, its paired differences, and the settings that were selected."""

import dataclasses
import json
import math
import re

import pytest

from amd_plugin.errors import InputError
from amd_plugin.evaluate.comparison import tables
from amd_plugin.evaluate.comparison.result import FILE, Comparison, best_overall, run_folder
from amd_plugin.evaluate.directions import badness

KEYS = [
    "task", "recipe", "seeds", "arms", "baseline", "better", "held_out", "select_seeds", "families", "selected", "unused",
    "seconds", "updates", "teacher", "own_teachers", "command", "commits",
]  # fmt: skip


@pytest.fixture
def comparison():
    values = {"dmd": [0.5, 0.6], "amd": [0.7, 0.5], "dmd@w=2": [0.8, 0.6]}
    return Comparison(
        task="modes2d", recipe="modes2d", seeds=[0, 1], baseline="dmd", held_out=["up", "one"],
        arms={arm: {"up": numbers, "one": [1 + n for n in numbers]} for arm, numbers in values.items()},
        better={"up": "up", "one": "one"}, teacher={"up": [1.0, 1.0], "one": [1.0, 1.0]}, command="amd-plugin compare",
        selected={"dmd": "dmd@w=2", "amd": "amd"},
    )  # fmt: skip


def test_it_survives_its_file_with_the_same_keys_in_the_same_order(comparison, tmp_path):
    comparison.write(tmp_path)
    assert list(json.loads((tmp_path / FILE).read_text())) == KEYS
    again = Comparison.from_file(tmp_path / FILE)
    assert again.as_json() == comparison.as_json()


def test_a_metric_that_is_not_finite_is_null_for_any_program_and_is_read_back(comparison, tmp_path):
    arms = {arm: {"up": [math.nan, math.inf], "one": [1.0, 1.0]} for arm in comparison.arms}
    dataclasses.replace(comparison, arms=arms).write(tmp_path)
    found = json.loads((tmp_path / FILE).read_text(), parse_constant=pytest.fail)
    assert found["arms"]["amd"] == {"up": [None, None], "one": [1.0, 1.0]}
    assert all(map(math.isnan, Comparison.from_file(tmp_path / FILE).arms["amd"]["up"]))


def test_a_file_that_is_none_is_said(tmp_path):
    for content in ("[", "{}", '{"task": "x", "purr": 1}'):
        (tmp_path / FILE).write_text(content)
        with pytest.raises(InputError, match=r"compare.json: cannot be read"):
            Comparison.from_file(tmp_path / FILE)


def test_differences_are_paired_and_wins_follow_the_direction(comparison):
    difference = comparison.paired("amd", "dmd", "up")
    assert difference.mean == pytest.approx(0.05) and difference.wins == 1
    assert comparison.paired("amd", "dmd", "one").wins == 1, "closer to 1 in the second seed"
    assert comparison.best_tuned("up") == "dmd@w=2" and comparison.best_tuned("one") == "dmd"
    assert comparison.selected_arms() == ("dmd@w=2", ["amd"])


def test_one_seed_has_no_deviation(comparison):
    assert "±" in tables.spread([0.5, 0.6]) and tables.difference(comparison, "amd", "dmd", "up") == "+0.050 ± 0.212 (1/2)"
    first = {arm: {metric: values[:1] for metric, values in metrics.items()} for arm, metrics in comparison.arms.items()}
    alone = dataclasses.replace(comparison, seeds=[0], arms=first, selected={})
    assert tables.spread([0.5]) == "0.500" and tables.difference(alone, "amd", "dmd", "up") == "+0.200 (1/1)"
    assert tables.markdown(alone).startswith("# modes2d: 1 seed, paired")


def test_a_table_says_whose_the_teachers_are(comparison):
    assert "each seed has its own teacher" in tables.markdown(comparison)
    shared = tables.markdown(dataclasses.replace(comparison, own_teachers=False))
    assert "all share one teacher" in shared and "own teacher" not in shared


def test_an_arm_that_diverged_is_no_best_one(comparison):
    broken = {**comparison.arms, "dmd": {**comparison.arms["dmd"], "up": [math.nan, 0.9]}}
    broken = dataclasses.replace(comparison, arms=broken)
    assert broken.best_tuned("up") == "dmd@w=2" and best_overall(broken.arms, broken.better, ["up"]) != "dmd"


@pytest.mark.parametrize("values", [[math.nan, 0.9], [math.inf, 0.9], [math.inf, -math.inf]])
def test_a_value_that_is_not_finite_ends_no_table(comparison, values, tmp_path):
    """All runs are trained by then, and the standard library's mean and deviation raise."""
    broken = {**comparison.arms, "amd": {**comparison.arms["amd"], "up": values}}
    dataclasses.replace(comparison, arms=broken, teacher={**comparison.teacher, "up": values}).write(tmp_path)
    again = Comparison.from_file(tmp_path / FILE)
    assert "| amd | nan ± nan |" in tables.markdown(again) and "| *teacher, many steps* | nan ± nan |" in tables.markdown(again)
    assert [*tables.terminal_table(again).columns[1].cells][1].startswith("nan (")
    assert best_overall(again.arms, again.better, ["up"]) == "dmd@w=2"


@pytest.mark.parametrize(("change", "said"), [
    ({"seeds": [], "arms": {"dmd": {"up": [], "one": []}}}, "seeds: must name one"),
    ({"arms": {"../../victim": {}}}, "arms: must be names of folders, got '../../victim'"),
    ({"teacher": {"up": [1.0, 1.0], "one": [1.0, 1.0], "more": [1.0, 1.0]}}, "teacher: must have one value per seed"),
    ({"teacher": {"up": [], "one": [1.0, 1.0]}}, "teacher: must have one value per seed"),
    ({"selected": {"dmd": "purr"}}, "selected.dmd: is none of the arms, got 'purr'"),
    ({"updates": {"up": {"dmd": [1, 2]}}}, "updates.up: must have one value per seed for each of the arms"),
    ({"updates": {"up": {"dmd": [1, 2], "amd": [], "dmd@w=2": [1, None]}}}, "updates.up: must have one value"),
])  # fmt: skip
def test_a_file_whose_parts_contradict_each_other_is_said(comparison, change, said, tmp_path):
    dataclasses.replace(comparison, **change).write(tmp_path)
    with pytest.raises(InputError, match=re.escape(said)):
        Comparison.from_file(tmp_path / FILE)


def test_a_link_in_a_comparison_leads_to_no_run_elsewhere(tmp_path):
    (tmp_path / "victim" / "seed-0").mkdir(parents=True)
    (tmp_path / "comparison" / "arms").mkdir(parents=True)
    (tmp_path / "comparison" / "arms" / "amd").symlink_to(tmp_path / "victim")
    (tmp_path / "link").symlink_to(tmp_path / "comparison")
    for folder in ("comparison", "link"):
        assert run_folder(tmp_path / folder, "dmd", 0) == tmp_path / folder / "arms" / "dmd" / "seed-0"
        with pytest.raises(InputError, match=r"leads out of .* by a link"):
            run_folder(tmp_path / folder, "amd", 0)


def test_ranks_decide_and_the_earlier_of_two_equals_wins(comparison):
    assert best_overall(comparison.arms, comparison.better, ["up"]) == "dmd@w=2"
    assert best_overall(comparison.arms, comparison.better, ["up", "one"]) == "dmd"


def test_lower_badness_is_better():
    assert badness(2.0, "up") < badness(1.0, "up") and badness(1.0, "down") < badness(2.0, "down")
    assert badness(0.9, "one") == pytest.approx(badness(1.1, "one"))
