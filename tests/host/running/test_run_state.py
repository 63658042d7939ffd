"""What state.json of a run must hold."""

import json

import pytest

from amd_plugin.host.running.run_state import RunState
from amd_plugin.json_files import parse

WHOLE = {"step": 4, "rest": {}, "recipe": {}, "objective": {}, "plugins": {}}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"evaluations": [{"held_out/score": 0.5}]}, "evaluations.0: .*must have a step"),
        ({"evaluations": [{"step": float("nan")}]}, "evaluations.0: .*must have a step"),
        ({"evaluations": [{"step": "4"}]}, "evaluations.0.step"),
        ({"log": {"lines": -1}}, "log.lines"),
        ({"log": {"window": {"loss": [1.0]}}}, "log.window.loss.1"),
        ({"skipped": [1.5]}, "skipped.0"),
        ({"plugins": []}, "plugins"),
        ({"step": -1}, "step"),
        ({"step": 2**60}, "step"),
    ],
)
def test_what_does_not_fit_is_named(wrong, message):
    assert parse(json.dumps(WHOLE).encode(), RunState).step == 4
    with pytest.raises(ValueError, match=message):
        parse(json.dumps(WHOLE | wrong).encode(), RunState)
