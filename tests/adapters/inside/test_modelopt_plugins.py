"""A third party's noise levels, strength schedule and placement of the teacher inside `AMDPipeline`."""

import pytest
import torch
from modelopt.torch.fastgen import DMDPipeline
from plugin import Levels
from test_modelopt import batch, brightness, config, pipeline, same, train, weights

from amd_plugin import get_plugin_manager, hookimpl
from amd_plugin.adapters.modelopt import AMDPipeline
from amd_plugin.errors import InputError, RunError


def record_timesteps(pipe):
    """A list to which every later call of teacher and fake score adds its timesteps, of 1000."""
    timesteps = []
    for role in (pipe.teacher, pipe.fake_score):
        role.register_forward_pre_hook(lambda module, args, kwargs: timesteps.append(kwargs["timestep"]), with_kwargs=True)
    return timesteps


@pytest.mark.parametrize("reward", [brightness, None], ids=["reward", "none"])
def test_levels_and_strength(reward):
    plugin = Levels()
    pipe = pipeline(AMDPipeline, reward=reward, plugins=plugin.plugins, max_steps=2, amd={"side": "both"})
    timesteps = record_timesteps(pipe)
    train(pipe, 4)
    advantages = None if reward is None else 4
    assert plugin.moved == [(role, step, 4, advantages) for role, step in
                            (("student", 0), ("fake_score", 1), ("student", 1), ("fake_score", 2))]  # fmt: skip
    levels = torch.cat(timesteps) / 1000
    assert ((levels >= 0.4) & (levels <= 0.5)).all() and len(levels.unique()) == 16, "teacher, critic: one draw for a turn"
    assert plugin.steps == [(0, 2, False), *[(step, 2, reward is not None) for step in (1, 1, 2)]]
    assert pipe.objective.schedule_factor == 0.5 and len(set(plugin.random)) == 4
    assert plugin.options["objective"] == {"strength": "auto", "sharpening": 1.0, "side": "both"}


def test_the_samplers_draws_follow_from_the_seed():
    first, again, other = Levels(), Levels(), Levels()
    for plugin, seed in ((first, 3), (again, 3), (other, 4)):
        train(pipeline(AMDPipeline, plugins=plugin.plugins, seed=seed), 2)
    assert first.random == again.random != other.random


def test_a_schedule_counts_updates_in_a_loop_that_accumulates():
    plugin = Levels()
    train(pipeline(AMDPipeline, reward=brightness, plugins=plugin.plugins, max_steps=3, accumulation=2), 10)
    assert [step for step, *_ in plugin.steps] == [0, 0, 0, 1, 1, 1, 1, 2, 2, 2]


def test_losses_without_gradients_are_the_hosts_and_train_nothing():
    """Of a user's own validation."""
    plugin, amd = Levels(), {"memory_share": 0.5, "advantage_guidance": 1.0}
    stock, ours = pipeline(DMDPipeline), pipeline(AMDPipeline, reward=brightness, plugins=plugin.plugins, amd=amd)
    train(ours, 4)
    before, calls = ours.state_dict(), len(plugin.moved + plugin.steps)
    fresh = pipeline(AMDPipeline, reward=brightness, amd=amd)
    with torch.no_grad():
        train_nothing(ours)
        losses = [train_nothing(pipe) for pipe in (stock, fresh)]
    assert ours.state_dict() == before and len(plugin.moved + plugin.steps) == calls and same(*losses)


def train_nothing(pipe):
    latents, noise, condition, negative = batch(0)
    torch.manual_seed(0)
    losses = [pipe.compute_student_loss(latents, noise, condition, negative_encoder_hidden_states=negative),
              pipe.compute_fake_score_loss(latents, noise, condition)]  # fmt: skip
    return [loss["total"] for loss in losses]


def test_a_sampler_that_moves_nothing_is_the_host_to_the_bit():
    stock = pipeline(DMDPipeline)
    ours = pipeline(AMDPipeline, strength=0, sharpening=0, reward=brightness, plugins=Levels(0, 1).plugins)
    expected, got = train(stock), train(ours)
    assert same(expected[0], got[0]) and torch.equal(expected[2], got[2]) and same(weights(stock), weights(ours))


def test_resumed_samplers_draw_on():
    straight, first, second = Levels(), Levels(), Levels()
    train(pipeline(AMDPipeline, reward=brightness, plugins=straight.plugins), 6)
    first_run = pipeline(AMDPipeline, reward=brightness, plugins=first.plugins)
    train(first_run, 3)
    again = pipeline(AMDPipeline, reward=brightness, plugins=second.plugins)
    again.load_state_dict(first_run.state_dict())
    train(again, 3, start=3)
    assert first.random + second.random == straight.random and first.moved + second.moved == straight.moved
    with pytest.raises(InputError, match="objective and turns"):
        again.load_state_dict(first_run.objective.state_dict())


@pytest.mark.parametrize("wrong", [lambda s: s[:1], lambda s: s + 1, lambda s: s * float("nan")], ids="short large nan".split())
def test_wrong_levels_end_the_run(wrong):
    plugin = Levels()
    plugin.move = lambda sigma, **rest: wrong(sigma)
    with pytest.raises(RunError, match="must return a new tensor of 4 levels"):
        train(pipeline(AMDPipeline, plugins=plugin.plugins), 1)


def test_prompts_reach_the_reward_in_both_turns():
    prompts_scored = []
    pipe = pipeline(AMDPipeline, reward=lambda media, prompts: prompts_scored.append(prompts) or media.mean((1, 2, 3, 4)))
    latents, noise, condition, negative = batch(0)
    prompts = ["a fox", "a fox", "a boat", "a boat"]
    pipe.compute_student_loss(latents, noise, condition, negative_encoder_hidden_states=negative, prompts=prompts)
    pipe.compute_fake_score_loss(latents, noise, condition, prompts=prompts)
    pipe.compute_fake_score_loss(latents, noise, condition)
    assert prompts_scored == [prompts, prompts, [""] * 4]


def test_an_accelerator_places_the_teacher_by_hook():
    from accelerate import Accelerator

    class Places:
        @hookimpl
        def distill_prepare_frozen(self, role, module, accelerator, options, read):
            self.call = (role, module, accelerator, options, read)
            return torch.nn.Identity().to(accelerator.device)

    places, plugins, accelerator = Places(), get_plugin_manager(), Accelerator(cpu=True)
    plugins.register(places, "places")
    pipe = pipeline(AMDPipeline, accelerator=accelerator, plugins=plugins)
    role, module, given, options, read = places.call
    assert (role, given, options, read) == ("teacher", accelerator, {"distributed": {"teacher": "none"}}, None)
    assert type(pipe.teacher) is torch.nn.Identity and type(module).__name__ == "WanTransformer3DModel"
    whole = pipeline(AMDPipeline, reward=brightness, accelerator=accelerator)
    assert same(train(whole, 2)[0], train(pipeline(AMDPipeline, reward=brightness), 2)[0])


@pytest.mark.parametrize("options", [{"sharding": "zero3"}, {"sharding": "zero2", "accelerator": 1}], ids=str)
def test_sharding_that_cannot_be(options):
    with pytest.raises(InputError, match="sharding: must be one of none, zero3, zero3_offload, and needs an accelerator"):
        pipeline(AMDPipeline, cfg=config(), **options)
