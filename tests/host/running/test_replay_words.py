"""The words of a replay, where most samples are not finite."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest

from amd_plugin.errors import InputError
from amd_plugin.host.running import replay
from amd_plugin.host.running.replay import Replay, Stage


def test_of_many_samples_the_first_are_named():
    stages = [Stage("x0", tuple(range(192)), 0.0), Stage("direction", (), 0.0)]
    lines = list(Replay(4, "student", "a sentence", stages, [f"layer {i}" for i in range(7)]).lines())
    assert lines[1].startswith("  x0: not finite in samples 0, 1, 2, 3, 4, 5, 6, 7 and 184 more;")
    assert lines[2].startswith("  direction: finite;") and lines[3].endswith("layer 4 and 2 more")


def test_its_json_is_what_any_program_reads():
    stages = [Stage("x0", [], math.inf), Stage("direction", [3], 0.25)]
    found = json.loads(Replay(4, "student", "a sentence", stages, []).as_json(), parse_constant=pytest.fail)
    assert [stage["gap"] for stage in found["stages"]] == [None, 0.25] and found["step"] == 4


def test_a_mistake_in_its_recipe_is_told_by_the_dumps_folder_whatever_that_is_called(plugins):
    dump = SimpleNamespace(state=SimpleNamespace(recipe={"data": {"task": "no such"}}))
    with pytest.raises(InputError, match=r"the recipe in we\\ird\\1: ") as found:
        replay._recipe(Path("we\\ird\\1"), dump, plugins, ())
    assert "config.yaml" not in str(found.value)
