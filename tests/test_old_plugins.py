"""Plugins and adapters written against the docs before version 0.1.0: each works, or fails with what to change."""

import importlib.metadata
import sys
import types

import pytest
import torch

import amd_plugin
from amd_plugin import DMDObjective, Signals, hookimpl, recipe
from amd_plugin.config import RewardConfig
from amd_plugin.errors import InputError
from amd_plugin.rewards.reward_set import RewardSet

# The template of docs/adapters.md, with the import that it left out.
ADAPTER = """
from amd_plugin.adapters.steering import Steering, adaptive_objective, make_reward
from amd_plugin.adapters.surface import Host
from amd_plugin.plugins import get_plugin_manager
from amd_plugin.reward_statistics import group_ids
from amd_plugin.signals import Signals

HOST = Host("my-trainer", minimum="1.4", below="1.6", source="my-trainer>=1.4")
Trainer = HOST.load("my_trainer.dmd").Trainer
HOST.check(Trainer, {"student_loss": "self, batch", "fake_loss": "self, batch"})


class AMDTrainer(Trainer):
    def __init__(self, config, amd=None):
        super().__init__(config)
        options = dict(amd or {})
        reward = make_reward(options.pop("reward", None))
        self.objective = adaptive_objective(config.guidance_scale, options)
        self.steering = Steering(self.objective, reward, self.decode, plugins=get_plugin_manager(), options=options)

    def student_loss(self, batch):
        self.steering.begin(self.student_updates, self.config.max_steps)
        if not (self.steering.active or self.steering.moves):
            return super().student_loss(batch)
        x0 = self.rollout(batch)
        advantage, _ = self.steering(x0, group_ids(batch.prompts, len(x0)), batch.prompts)
        t = self.steering.levels(self.draw_levels(batch), "student", self.student_updates)
        cond, uncond, fake = self.scores(x0, t, batch)
        signals = Signals(x0, cond, uncond, fake, advantage=advantage, **self.steering.sensed)
        return self.objective.student_loss(signals).loss

    def fake_loss(self, batch):
        self.steering.begin(self.student_updates, self.config.max_steps)
        if not (self.steering.active or self.steering.moves):
            return super().fake_loss(batch)
        x0 = self.rollout(batch).detach()
        _, weight = self.steering(x0, group_ids(batch.prompts, len(x0)), batch.prompts)
        t = self.steering.levels(self.draw_levels(batch), "fake_score", self.updates)
        prediction, target = self.denoise(x0, t, batch)
        return self.objective.fake_score_loss(prediction, target, weight).loss
"""


class Trainer:
    """A host: its losses are 0, its networks return random numbers."""

    student_updates = updates = 0

    def __init__(self, config):
        self.config = config

    def student_loss(self, batch):
        return torch.zeros(())

    fake_loss = student_loss

    def rollout(self, batch):
        return torch.linspace(0, 1, 12).view(4, 3).requires_grad_()

    def decode(self, x0):
        return x0

    def draw_levels(self, batch):
        return torch.full((4,), 0.5)

    def scores(self, x0, t, batch):
        return torch.randn(3, 4, 3).unbind()

    def denoise(self, x0, t, batch):
        return torch.randn(2, 4, 3).unbind()


def register(plugins, **hooks):
    plugins.register(types.SimpleNamespace(**{name: hookimpl(function) for name, function in hooks.items()}), "old")
    return plugins


def old_contract(**attributes):
    """An objective from scratch, with `attributes` and the methods of the old contract."""
    methods = ("student_loss", "fake_score_loss", "state_dict", "load_state_dict")
    namespace = {name: lambda self, *args, **kwargs: {} for name in methods}
    namespace |= {"advantage": lambda self, reward, groups: reward, "sharpening_weights": lambda self, advantage: advantage}
    return type("Scratch", (), {"__module__": "third_party", **namespace, **attributes})


def test_an_objective_of_the_docs(plugins):
    from amd_plugin import operators

    class HalfGuidance(DMDObjective):
        def __init__(self, guidance_scale: float = 1.0, *, guide_weight: float = 0.5):
            super().__init__(guidance_scale)
            self.guide_weight = guide_weight

        def operator(self):
            return operators.chain(operators.dmd(self.guidance_scale), operators.weigh(guide=self.guide_weight))

    register(plugins, distill_objectives=lambda: {"half_guidance": HalfGuidance})
    overrides = ["objective.guidance_scale=3.0", "objective.guide_weight=1.0"]
    objective = recipe.load("modes2d", plugins, overrides, objective="half_guidance").objective
    signals = Signals(*torch.randn(4, 4, 3).unbind())
    assert torch.equal(objective.student_loss(signals).loss, DMDObjective(3.0).student_loss(signals).loss)


@pytest.mark.parametrize(
    ("attributes", "replacement"),
    [
        ({"needs_reward": True, "min_group_size": 2}, "needs_reward, which is now needs.reward, min_group_size, which is now"),
        ({"needs_uncond": property(lambda self: True)}, "needs_uncond, which is now needs.uncond"),
        ({"recommended_group_size": 8}, "recommended_group_size, which is now needs.recommended_group_size"),
        ({"reward_options": ("strength",)}, "reward_options, which is now reward_levers"),
        ({"memory_share": 0.25, "memory_size": 8}, "memory_share, which is now needs.replay"),
        ({"per_rung": True}, "per_rung, which is now the argument rung of advantage"),
        ({"strength_scale": 0.5}, "strength_scale, which is now schedule_factor"),
        ({"sharpening_sigma": (0.0, 0.5)}, "sharpening_sigma, instead of which a host reads needs.fake_score_noise_level"),
        ({"advantage": lambda self, reward, groups: reward}, r"whose advantage does not take \(reward, groups, rung\)"),
        ({"sharpening_weights": lambda self, advantage: advantage}, "whose sharpening_weights does not take"),
    ],
)
def test_a_subclass_of_the_old_contract_is_refused_with_what_to_change(plugins, attributes, replacement):
    factory = type("Subclass", (DMDObjective,), {"__module__": "third_party", **attributes})
    register(plugins, distill_objectives=lambda: {"mine": factory})
    with pytest.raises(InputError, match=replacement):
        plugins.make_objective("mine")


def test_an_objective_from_scratch_is_refused_with_what_to_change(plugins):
    attributes = {
        "guidance_scale": 1.0,
        "needs_reward": True,
        "needs_uncond": False,
        "min_group_size": 1,
        "strength_scale": 1.0,
    }
    factory = old_contract(**attributes, guidance_sigma=(0.1, 0.9), match_sigma=None)
    register(plugins, distill_objectives=lambda: {"mine": factory})
    with pytest.raises(InputError) as caught:
        plugins.make_objective("mine")
    assert all(f"{name}, which is now" in str(caught.value) for name in attributes if name != "guidance_scale")


def test_a_range_that_is_no_need_is_refused(plugins):
    attributes = {"guidance_scale": 1.0, "schedule_factor": 1.0, "reward_unit": 0.0, "reward_levers": {}, "shared_sums": ()}
    methods = {
        "advantage": lambda self, reward, groups, rung=0: reward,
        "sharpening_weights": lambda self, advantage, sigma=None: advantage,
    }
    for given, problem in (((0.1, 0.9), "instead of which a host reads needs.guidance_range"), (None, None)):
        factory = old_contract(**attributes, **methods, needs=amd_plugin.hookspecs.Needs(), guidance_sigma=given)
        manager = register(amd_plugin.get_plugin_manager(), distill_objectives=lambda factory=factory: {"mine": factory})
        if problem is None:
            manager.make_objective("mine")
        else:
            with pytest.raises(InputError, match=problem):
                manager.make_objective("mine")


def test_a_trainer_that_reads_old_attributes_is_given_the_new_ones():
    for name, replacement in (("needs_reward", "needs.reward"), ("min_group_size", "needs.group_size")):
        with pytest.raises(AttributeError, match=f"AMDObjective.{name} is now {replacement}"):
            getattr(amd_plugin.AMDObjective(), name)
    objective = amd_plugin.AMDObjective()
    objective.strength_scale = 0.5
    assert objective.schedule_factor == objective.strength_scale == 0.5


def test_rewards_of_the_docs(plugins):
    from amd_plugin.rewards.trl_functions import ToTRL, from_trl

    class Saturation:
        differentiable, media, version, unit = True, "any", "1", 0.0

        def __init__(self, power: float = 1.0):
            self.power = power

        def __call__(self, media, prompts):
            spread = media.float().amax(1) - media.float().amin(1)
            return spread.flatten(1).mean(1) ** self.power

    def landscape(prompts, completions, **columns):
        return [float(image.width > image.height) for image in completions]

    def brightness(power: float = 1.0):
        return lambda media, prompts: media.flatten(1).mean(1) ** power

    rewards = {"saturation": Saturation, "landscape": from_trl(landscape), "brightness": brightness}
    register(plugins, distill_rewards=lambda: rewards)
    media, prompts = torch.rand(4, 3, 4, 8), ["a cat"] * 4
    configs = [RewardConfig(name="saturation", power=0.5), RewardConfig(name="landscape"), RewardConfig(name="brightness")]
    scores = RewardSet(configs, plugins, None)(media, prompts).total
    torch.testing.assert_close(scores, Saturation(0.5)(media, prompts) + 1 + media.flatten(1).mean(1), atol=1e-2, rtol=1e-2)
    assert len(ToTRL(Saturation(), name="saturation")(prompts=prompts, completions=list(media))) == 4


@pytest.mark.parametrize("reward", [None, lambda media, prompts: media.mean(1)], ids=["no reward", "reward"])
def test_an_adapter_a_sampler_and_a_schedule_of_the_docs(monkeypatch, reward):
    class NoiseByAdvantage:
        @hookimpl
        def distill_sigma_sampler(self, options):
            _, highest = options.get("train", {}).get("sigma", (0.02, 0.98))

            def sampler(sigma, *, role, advantage, step, generator):
                if role != "student" or advantage is None:
                    return sigma
                return sigma + 0.5 * (-advantage).clamp(min=0) * (highest - sigma)

            return sampler

        @hookimpl
        def distill_strength_schedule(self, step, max_steps, metrics):
            return min(1.0, metrics.get("objective/zone_share", 1.0) / 2)

    monkeypatch.setitem(sys.modules, "my_trainer.dmd", types.SimpleNamespace(Trainer=Trainer))
    version = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.5" if name == "my-trainer" else version(name))
    adapter = {"__name__": "my_adapter"}
    exec(ADAPTER, adapter)
    levels = []
    monkeypatch.setattr(Trainer, "scores", lambda self, x0, t, batch: (levels.append(t), *torch.randn(3, 4, 3))[1:])
    manager = amd_plugin.get_plugin_manager()
    manager.register(NoiseByAdvantage(), "noise")
    adapter["get_plugin_manager"] = lambda: manager
    config = types.SimpleNamespace(guidance_scale=2.0, max_steps=4)
    trainer = adapter["AMDTrainer"](config, {"strength": 0.5, "reward": reward})
    batch = types.SimpleNamespace(prompts=["a cat", "a cat", "a dog", "a dog"])
    losses = trainer.student_loss(batch), trainer.fake_loss(batch)
    assert all(torch.isfinite(loss) and loss > 0 for loss in losses) and trainer.objective.schedule_factor == 0.5
    moved = levels[0] > 0.5
    assert moved.tolist() == ([False] * 4 if reward is None else [True, False] * 2)
    assert manager.statuses["noise"].status == "active"
