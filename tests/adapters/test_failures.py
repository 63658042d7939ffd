"""The memory of failures that adapters share; `test_bridge` has it over two real processes."""

import json

import pytest
import torch

from amd_plugin import AMDObjective
from amd_plugin.adapters.bridge import HostBridge
from amd_plugin.adapters.failures import Failures
from amd_plugin.errors import RunError

GROUPS = torch.tensor([1, 1, 2, 2])


def scored(rewards, share=0.999):
    """A bridge that has scored four samples, and a memory."""
    bridge = HostBridge(AMDObjective(memory_share=share), lambda media, prompts: torch.tensor(rewards))
    bridge.advantages(torch.zeros(4, 1), GROUPS)
    return bridge, Failures(share, bridge)


def test_the_worst_sample_comes_back_with_its_own_condition():
    _, failures = scored([0.0, 5.0, 1.0, 1.1])
    x0 = torch.arange(4.0)[:, None]
    inputs = {"text": x0 * 10, "parts": [x0 * 100, "name", torch.zeros(())]}
    assert not failures.recall(x0, inputs, 0, 0)[2].any(), "there is nothing to remember yet"
    failures.add(x0, inputs, 0)
    fresh = {"text": torch.ones(4, 1), "parts": [torch.ones(4, 1), "name", torch.zeros(())]}
    for _ in range(2):
        again, given, replaced = failures.recall(torch.ones(4, 1), fresh, 0, "turn", 1)
        assert replaced.all() and (again == 0).all() and (given["text"] == 0).all() and (given["parts"][0] == 0).all()
        assert given["parts"][1] == "name" and (fresh["text"] == 1).all()
        kept = json.loads(json.dumps(failures.state_dict()))
        failures = Failures(0.999, scored([0.0, 5.0, 1.0, 1.1])[0])
        failures.load_state_dict(kept)


def test_each_rung_has_its_own_and_other_shapes_are_left_alone(caplog):
    _, failures = scored([0.0, 5.0, 1.0, 1.1])
    x0 = torch.arange(4.0)[:, None]
    failures.add(x0, {"text": x0}, torch.tensor([2, 0, 0, 0]))
    _, _, replaced = failures.recall(x0 + 1, {"text": x0}, torch.tensor([2, 0, 2, 1]), 0)
    assert replaced.tolist() == [True, False, True, False]
    assert "memory_share" not in caplog.text
    for _ in range(2):
        assert not failures.recall(x0 + 1, {"text": torch.zeros(4, 7)}, 2, 0)[2].any()
    assert caplog.text.count("differ from one turn to another") == 1 and "Pad texts to one length" in caplog.text
    assert not failures.recall(x0 + 1, {}, 2, 0)[2].any()


def test_nothing_is_remembered_where_nothing_failed():
    _, failures = scored([1.0, 1.0, 1.0, 1.0])
    failures.add(torch.zeros(4, 1), {}, 0)
    assert failures.state_dict() == {}


def test_samples_that_are_not_finite_are_not_remembered():
    _, failures = scored([0.0, 5.0, 1.0, 1.1])
    x0 = torch.arange(4.0)[:, None]
    x0[0] = torch.nan
    failures.add(x0, {}, 0)
    assert failures.state_dict() == {}


def test_conditions_that_nobody_can_tell_apart_are_refused():
    _, failures = scored([0.0, 5.0, 1.0, 1.1])
    with pytest.raises(RunError, match=r"memory_share: needs conditions of 4 samples each.*shapes \(7, 2\), \(7, 2\)"):
        failures.exchange(torch.zeros(4, 1), {"texts": [torch.zeros(7, 2)] * 2}, 0, 0)


def test_the_memory_is_bounded(monkeypatch):
    monkeypatch.setattr("amd_plugin.objectives.failure_memory.BYTES", 3 * 8)
    _, failures = scored([0.0, 5.0, 1.0, 1.1])
    for value in range(5):
        failures.add(torch.full((4, 2), float(value)), {}, 0)
    again, _, replaced = failures.recall(torch.full((4, 2), 9.0), {}, 0, 0)
    assert replaced.all() and set(again.flatten().tolist()) <= {2.0, 3.0, 4.0}
