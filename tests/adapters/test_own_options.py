"""Options of the adapters themselves."""

import json
import logging
import math

import pytest

from amd_plugin import AMDObjective, hookimpl
from amd_plugin.adapters.bridge import HostBridge
from amd_plugin.adapters.named_rewards import make_reward
from amd_plugin.adapters.own_options import OwnOptions, split_options
from amd_plugin.adapters.run_state import restore, state_of
from amd_plugin.config import TrainConfig
from amd_plugin.errors import InputError


def test_no_section_is_no_options():
    assert split_options(None, "amd") == split_options({}, "amd") == ({}, OwnOptions())
    assert split_options({"kl": 0, "reward": "random"}, "amd") == ({"kl": 0}, OwnOptions(reward="random"))


@pytest.mark.parametrize("given", [False, True, 0, [], "", "off", [{"kl": 0}]], ids=repr)
def test_a_section_of_another_type_is_refused_and_not_taken_for_none(given):
    with pytest.raises(InputError, match=r"method\.amd: must be a mapping of options"):
        split_options(given, "method.amd")


@pytest.mark.parametrize("rate", [0, -5e-3, "5e-3", True, None, math.nan, math.inf], ids=repr)
def test_a_learning_rate_is_a_number_above_0(rate):
    with pytest.raises(InputError, match=r"method\.amd\.outcome_lr: must be a finite number above 0, got"):
        split_options({"outcome_lr": rate}, "method.amd")


def test_outcomes_have_the_reference_hosts_learning_rate():
    assert OwnOptions().outcome_lr == TrainConfig.model_fields["outcome_lr"].default
    assert split_options({"outcome_lr": 1}, "amd")[1].outcome_lr == 1


def test_a_state_of_other_options_is_refused_by_that_reason():
    saved = state_of(HostBridge(AMDObjective(2.0)), None, None)
    restore(saved, HostBridge(AMDObjective(2.0, strength=0.1)), None, None)
    with pytest.raises(
        InputError, match=r"got .*'rewards'\]\. It belongs to another objective, or to other options of this one"
    ):
        restore(saved, HostBridge(AMDObjective(2.0, kl=0.5)), None, None)


def test_the_states_of_plugins_are_part_of_a_checkpoint(plugins):
    class Counting:
        seen = 7

        @hookimpl
        def distill_state_dict(self):
            return "counting", {"seen": self.seen}

        @hookimpl
        def distill_load_state_dict(self, state):
            self.seen = state.get("counting", {"seen": 0})["seen"]

    plugin = Counting()
    plugins.register(plugin, "counting")
    bridge = HostBridge(AMDObjective(2.0), plugins=plugins)
    saved = json.loads(json.dumps(state_of(bridge, None, None)))
    plugin.seen = 100
    restore(saved, bridge, None, None)
    assert plugin.seen == 7
    restore(state_of(HostBridge(AMDObjective(2.0)), None, None), bridge, None, None)
    assert plugin.seen == 0, "a checkpoint from before the plugin is told apart from no checkpoint"


def test_a_run_without_a_reward_says_what_that_means(caplog):
    with caplog.at_level(logging.WARNING):
        assert make_reward(None) is None
    assert "no reward is given: every advantage is 0" in caplog.text
