"""A third party's noise levels and strength schedule inside FastVideo's trainer."""

import pytest
import torch
from plugin import Levels
from test_fastvideo import CAUSAL, brightness, losses, one_process, run, same  # noqa: F401  # a fixture
from toy_fastvideo import STOCK, Probe, Toy

from amd_plugin.adapters.fastvideo import AMDMethod, AMDSelfForcingMethod


class Own(AMDMethod):
    """As a third party writes it: other plugins than those installed."""


class OwnSelfForcing(AMDSelfForcingMethod):
    """Likewise."""


OWN = {"method": "test_fastvideo_plugins.Own"}


@pytest.fixture
def levels(monkeypatch):
    """Timesteps that critic and teacher are called with, from the next run on."""
    timesteps, predict = [], Toy.predict_noise

    def recorded(self, x, timestep, *args, **kwargs):
        timesteps.extend([] if self.name == "student" else timestep.flatten().tolist())
        return predict(self, x, timestep, *args, **kwargs)

    monkeypatch.setattr(Toy, "predict_noise", recorded)
    return timesteps


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("reward", [brightness, None], ids=["reward", "none"])
def test_levels_and_strength(tmp_path, levels, reward, fast):
    plugin = Levels()
    Own.plugins = plugin.plugins
    run(tmp_path, reward=reward, amd={"side": "both", "fast_rollout": fast}, steps=4, **OWN)
    advantages = None if reward is None else 1
    roles = [("fake_score", 0), ("student", 0), ("fake_score", 0), ("fake_score", 1), ("student", 1), ("fake_score", 1)]
    assert plugin.moved == [(role, step, 1, advantages) for role, step in roles], "the host has one level for a batch"
    assert len(set(plugin.random)) == 6 and levels and all(400 <= level <= 500 for level in levels)
    assert plugin.steps == [(0, 2, False), (0, 2, False), *[(1, 2, reward is not None)] * 2]
    assert Probe.method.objective.schedule_factor == 0.5 and plugin.options["objective"] == {
        "side": "both",
        "normalizer": "global",
    }


def test_a_sampler_that_moves_nothing_is_the_host_to_the_bit(tmp_path):
    Own.plugins = Levels(0, 1).plugins
    stock = run(tmp_path, method=STOCK)
    ours = run(tmp_path, amd={"strength": 0, "sharpening": 0}, **OWN)
    assert same(list(stock[:3]), list(ours[:3])) and losses(stock[3]) == losses(ours[3])


def test_the_bounds_of_the_hosts_settings_stay(tmp_path, levels):
    Own.plugins = Levels().plugins
    run(tmp_path, amd={}, steps=2, min_timestep_ratio=0.6, **OWN)
    assert set(levels) == {600}


def test_self_forcing(tmp_path, levels, monkeypatch):
    from fastvideo.train.methods.distribution_matching import self_forcing

    scheduler = self_forcing.SelfForcingFlowMatchScheduler
    monkeypatch.setattr(self_forcing, "SelfForcingFlowMatchScheduler", lambda **kw: scheduler(**{**kw, "shift": 3.0}))
    plugin = Levels()
    OwnSelfForcing.plugins = plugin.plugins
    run(tmp_path, reward=brightness, amd={}, steps=2, **{**CAUSAL, "method": "test_fastvideo_plugins.OwnSelfForcing"})
    assert [role for role, *_ in plugin.moved] == ["fake_score", "student", "fake_score"]
    assert all(400 <= level <= 500 for level in levels)


def test_accumulated_turns_draw_each_for_itself(tmp_path):
    plugin = Levels()
    Own.plugins = plugin.plugins
    run(tmp_path, amd={}, steps=2, **OWN)
    once = torch.tensor(plugin.random)
    method, plugin.random[:] = Probe.method, []
    for _ in range(2):
        method.single_train_step(method.student.dataloader[0], 1)
    assert plugin.random[0] != plugin.random[1] and plugin.random[0] == once[0]
