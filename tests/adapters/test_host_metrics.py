"""Metrics as a host averages them."""

import json

import pytest
import torch

from amd_plugin.adapters.host_metrics import Tracked


def test_a_turn_without_samples_at_a_noise_level_does_not_hide_the_others():
    tracked, nan = Tracked("amd/"), torch.tensor(torch.nan)
    turns = [
        {"zone": torch.tensor(1.0), "reward/own": nan},
        {"zone": nan},
        {"zone": torch.tensor(3.0), "reward/own": torch.tensor(2.0)},
    ]
    named = [tracked.named(turn) for turn in turns]
    assert [set(turn) for turn in named] == [{"amd/zone", "reward/own"}, {"amd/zone"}, {"amd/zone", "reward/own"}]
    assert [turn["amd/zone"].item() for turn in named] == pytest.approx([1, 1, 3])
    resumed = Tracked("amd/")
    resumed.load_state_dict(json.loads(json.dumps(tracked.state_dict())))
    assert resumed.named({"zone": nan})["amd/zone"] == 3, "as in a run that was not stopped"
    assert named[0]["reward/own"].isnan() and named[2]["reward/own"] == 2, "what was never measured is no number"
