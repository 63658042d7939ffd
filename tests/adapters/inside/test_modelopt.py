"""`AMDPipeline` against ModelOpt's own `DMDPipeline` on tiny networks of diffusers' Wan class."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import WanTransformer3DModel
from modelopt.torch.fastgen import DMDConfig, DMDPipeline, EMAConfig
from modelopt.torch.fastgen.config import SampleTimestepConfig
from plugin import unchecked

from amd_plugin import DMDObjective, Signals
from amd_plugin.adapters.conditioning import FakeScoreConditions
from amd_plugin.adapters.modelopt import AMDPipeline
from amd_plugin.adapters.modelopt_automodel import AMDDiffusionRecipe
from amd_plugin.adapters.modelopt_host import HOST
from amd_plugin.errors import InputError, MissingDependency
from amd_plugin.objectives.dmd import decoupled_dmd, dmd2
from amd_plugin.objectives.reward_statistics import group_ids
from amd_plugin.plugins import get_plugin_manager
from tests.helpers.simulated_device import SIMULATED, SimulatedDevice, put

LATENTS = (4, 4, 2, 4, 4)


def wan(seed):
    torch.manual_seed(seed)
    return WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=1, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=8,
        freq_dim=8, ffn_dim=16, num_layers=1, rope_max_seq_len=16,
    )  # fmt: skip


class Discriminator(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(9)
        self.head = torch.nn.Linear(12, 1)

    def forward(self, features):
        return self.head(features[0].mean(1))


def config(**options):
    ladder = SampleTimestepConfig(t_list=[0.999, 0.9, 0.7, 0.4, 0.0], time_dist_type="shifted", shift=3.0)
    options = {"student_sample_steps": 4, "backward_simulation": True, "guidance_scale": 3.0, **options}
    return DMDConfig(pred_type="flow", num_train_timesteps=1000, sample_t_cfg=ladder, ema=EMAConfig(decay=0.9), **options)


def pipeline(cls, gan=False, cfg=None, **options):
    """A pipeline with its four networks, alike for every class; with features captured where it is adversarial."""
    student, teacher, fake = wan(1), wan(2), wan(3)
    extra = {}
    if gan:
        teacher._fastgen_captured = []
        teacher.blocks[0].register_forward_hook(lambda module, args, output: teacher._fastgen_captured.append(output))
        extra = {"discriminator": Discriminator()}
    return cls(student, teacher, fake, cfg or config(gan_loss_weight_gen=0.1 if gan else 0.0), **extra, **options)


def batch(step):
    draws = torch.Generator().manual_seed(step)
    condition = torch.randn(2, 3, 8, generator=draws).repeat_interleave(2, 0)
    return torch.randn(LATENTS, generator=draws), torch.randn(LATENTS, generator=draws), condition, torch.zeros(4, 3, 8)


def train(pipe, steps=10, start=0, random=None, rows=batch):
    """The user's loop, the same for both classes: every loss, the gradients of the last student turn, the generator's state."""
    students = torch.optim.SGD(pipe.student.parameters(), lr=0.05)
    fakes = torch.optim.SGD(pipe.fake_score.parameters(), lr=0.05)
    losses, gradients = [], []
    torch.set_rng_state(torch.Generator().manual_seed(7).get_state() if random is None else random)
    for step in range(start, start + steps):
        latents, noise, condition, negative = rows(step)
        if step % 2 == 0:
            out = pipe.compute_student_loss(latents, noise, condition, negative_encoder_hidden_states=negative)
            optimizer = students
        else:
            out, optimizer = pipe.compute_fake_score_loss(latents, noise, condition), fakes
        optimizer.zero_grad()
        out["total"].backward()
        if step % 2 == 0:
            gradients = [p.grad.clone() for p in pipe.student.parameters() if p.grad is not None]
        optimizer.step()
        if step % 2 == 0:
            pipe.update_ema()
        elif pipe.discriminator is not None:
            losses.append(pipe.compute_discriminator_loss(latents, noise, condition)["total"].detach())
        losses += [out[name].detach() for name in sorted(out)]
    return losses, gradients, torch.get_rng_state()


def weights(pipe):
    return [*pipe.student.parameters(), *pipe.fake_score.parameters()]


def brightness(media, prompts):
    return media.mean((1, 2, 3, 4))


def same(a, b):
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("gan", [False, True])
def test_strength_and_sharpening_0_is_the_host_to_the_bit(gan):
    stock, ours = pipeline(DMDPipeline, gan), pipeline(AMDPipeline, gan, strength=0, sharpening=0, reward=brightness)
    expected, got = train(stock), train(ours)
    assert same(expected[0], got[0]) and same(expected[1], got[1]) and torch.equal(expected[2], got[2])
    assert same(weights(stock), weights(ours))
    assert same(list(stock.ema.state_dict().values()), list(ours.ema.state_dict().values()))


@pytest.mark.parametrize("gan", [False, True])
@pytest.mark.parametrize(
    "reward", [lambda media, prompts: torch.ones(4), lambda media, prompts: [float("nan")] * 4, lambda m, p: 1 / 0]
)
def test_equal_and_failed_rewards_are_the_host_through_our_own_code(gan, reward):
    stock, ours = pipeline(DMDPipeline, gan), pipeline(AMDPipeline, gan, reward=reward)
    assert ours.bridge.uses_reward
    expected, got = train(stock, 4), train(ours, 4)
    assert torch.equal(expected[2], got[2])
    torch.testing.assert_close(got[0], expected[0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(got[1], expected[1], rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(weights(ours), weights(stock), rtol=1e-4, atol=1e-6)


def test_the_pages_code_trains():
    page = (Path(__file__).parents[3] / "docs" / "hosts" / "modelopt.md").read_text()
    constructor, loop, validation = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    vae = SimpleNamespace(decode=lambda latents: SimpleNamespace(sample=latents.clamp(-1, 1)))
    scored = []

    def reward(media, prompts):
        assert media.min() >= 0 and media.max() <= 1
        scored.append(prompts)
        return media.flatten(1).mean(1)

    names = {"student": wan(1), "teacher": wan(2), "fake_score": wan(3), "config": config(), "discriminator": None}
    names |= {"vae": vae, "reward": reward, "prompts": ["a", "a", "b", "b"]}
    names |= dict(zip(("latents", "noise", "text", "empty"), batch(0), strict=True))
    exec(constructor, names)
    pipe = names["pipeline"]
    for name, network in (("student_optimizer", pipe.student), ("fake_optimizer", pipe.fake_score)):
        names[name] = torch.optim.SGD(network.parameters(), lr=0.1)
    exec(loop, names)
    assert scored == [["a", "a", "b", "b"]] * 2 and {"reward", "zone_share"} <= set(names["rows"])
    names |= {"pipeline": pipeline(AMDPipeline, reward=brightness, held_out=lambda media, prompts: -brightness(media, prompts))}
    exec(validation, names | {"samples": names["latents"]})
    assert names["rows"]["sensor/reward"] == pytest.approx(-1) and names["rows"]["hacking_alarm"] == 0
    assert len(json.loads(json.dumps(names["pipeline"].state_dict()))["validations"]) == 1
    with pytest.raises(InputError, match="held_out"):
        pipeline(AMDPipeline).validate(names["latents"], names["prompts"])
    assert json.dumps(names["checkpoint"]) and all(p.grad is not None for p in pipe.student.parameters() if p.requires_grad)


def test_noise_levels_rungs_and_the_rewards_gradient_reach_the_objective():
    class Brightness:
        differentiable = True

        def __call__(self, media, prompts):
            return media.flatten(1).mean(1)

    windows = {"sharpening_sigma": [0.0, 1.0]}, {"sharpening_sigma": [0.0, 0.001]}
    options = ({}, *windows, {"reward_gradient": 0.3}, {"advantage_gradient": 0.3})
    pipes = [pipeline(AMDPipeline, reward=Brightness(), strength=0.0, amd=amd) for amd in options]
    plain, everywhere, nowhere, gradient, climbing = ([*map(float, train(pipe, 6)[0])] for pipe in pipes)
    assert plain == everywhere != nowhere and gradient[0] != plain[0]
    assert climbing[0] == plain[0] and climbing[-1] != plain[-1], "the first turn measures"
    assert len(pipes[0].objective.state_dict()["rewards"]["updates"]) > 1, "statistics of each exit rung"
    for option in ("reward_gradient", "advantage_gradient"):
        with pytest.raises(InputError, match=rf"amd\.{option}: needs a reward with gradients"):
            pipeline(AMDPipeline, reward=lambda media, prompts: media.flatten(1).mean(1), amd={option: 0.3})


def test_without_a_reward_every_advantage_is_0():
    stock, ours = pipeline(DMDPipeline), pipeline(AMDPipeline)
    assert same(train(stock, 4)[0], train(ours, 4)[0]) and same(weights(stock), weights(ours))


def test_an_objective_of_ones_own_takes_the_hosts_place_with_or_without_a_reward():
    stock, ours = pipeline(DMDPipeline), pipeline(AMDPipeline, objective=DMDObjective(3.0))
    expected, got = train(stock, 4), train(ours, 4)
    torch.testing.assert_close(got[0], expected[0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(weights(ours), weights(stock), rtol=1e-4, atol=1e-6)
    masked = pipeline(AMDPipeline, objective=DMDObjective(3.0, guidance_window=(0.0, 0.5)))
    assert not same(train(masked, 4)[0], got[0]) and "guide_norm" in masked.metrics


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (DMDObjective(1.5), "guidance scale"), (decoupled_dmd(3.0), "guidance_range"),
        (DMDObjective(3.0, match_sigma=(0.1, 0.5)), "match_range"), (dmd2(3.0), "discriminator"),
    ],
)  # fmt: skip
def test_an_objective_that_asks_for_more_is_refused(objective, message):
    with pytest.raises(InputError, match=f"objective.*{message}"):
        pipeline(AMDPipeline, objective=objective)


def test_metrics_know_levels_and_prompts():
    ours = pipeline(AMDPipeline, reward=brightness, sharpening=1.0)
    train(ours, 3)
    assert {"zone_share/low", "coherence_outside/high", "zero_spread_share", "quiet_share"} <= set(ours.metrics)


def test_rewards_change_both_turns():
    for options in ({"strength": 0.5, "sharpening": 0}, {"strength": 0, "sharpening": 1.0}):
        stock, ours = pipeline(DMDPipeline), pipeline(AMDPipeline, reward=brightness, amd={"side": "both"}, **options)
        expected, got = train(stock, 4), train(ours, 4)
        assert torch.equal(expected[2], got[2]), "the stream of random numbers"
        assert not same(weights(stock), weights(ours))
    assert ours.metrics["failed_rewards"] == 0 and "zone_share" in ours.metrics


@pytest.mark.parametrize(("in_config", "in_call"), [(3.0, None), (1.0, 3.0), (None, 3.0), (None, None)])
def test_guidance_is_the_standard_form_wherever_it_is_set(in_config, in_call):
    losses = []
    for cls, options in ((DMDPipeline, {}), (AMDPipeline, {"reward": lambda media, prompts: torch.ones(4)})):
        pipe = pipeline(cls, cfg=config(guidance_scale=in_config), **options)
        latents, noise, condition, negative = batch(0)
        torch.manual_seed(0)
        out = pipe.compute_student_loss(
            latents, noise, condition, negative_encoder_hidden_states=negative, guidance_scale=in_call
        )  # fmt: skip
        losses.append(out["vsd"])
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-7)


def test_samples_are_compared_within_their_condition():
    """Group 1 is far brighter than group 2; an advantage is about a sample's own group all the same."""
    pipe = pipeline(AMDPipeline, reward=lambda media, prompts: torch.tensor([10.0, 11.0, 0.0, 1.0]))
    latents, noise, condition, negative = batch(0)
    pipe.compute_student_loss(latents, noise, condition, negative_encoder_hidden_states=negative)
    groups = group_ids(condition, 4)
    assert groups[0] == groups[1] != groups[2] == groups[3]
    advantage, weight = pipe.bridge.advantages(latents, groups), pipe.bridge.weights()
    torch.testing.assert_close(advantage, torch.tensor([-1.0, 1.0, -1.0, 1.0]) * advantage[1])
    assert weight[0] == weight[2] > weight[1] and weight.mean() == pytest.approx(1)


def test_permuting_the_batch_permutes_the_gradients():
    order = torch.tensor([2, 0, 3, 1])
    pipe = pipeline(AMDPipeline, reward=brightness)
    latents, _, condition, _ = batch(0)
    sizes = []
    for index in (torch.arange(4), order):
        x0 = latents[index].clone().requires_grad_()
        signals = Signals(x0, latents[index] * 0.5, latents[index] * 0.2, latents[index] ** 2)
        advantage, weight = pipe.bridge.advantages(x0, group_ids(condition[index], 4)), pipe.bridge.weights()
        pipe.objective.student_loss(signals._replace(advantage=advantage)).loss.backward()
        sizes.append((x0.grad, weight))
    torch.testing.assert_close(sizes[0][0][order], sizes[1][0])
    torch.testing.assert_close(sizes[0][1][order], sizes[1][1])


@pytest.mark.parametrize("space", [None, "x0", "eps", "v"])
def test_every_space_of_the_fake_score_loss(space):
    losses = []
    for cls, options in ((DMDPipeline, {}), (AMDPipeline, {"reward": lambda media, prompts: torch.ones(4)})):
        pipe = pipeline(cls, cfg=config(fake_score_pred_type=space), **options)
        torch.manual_seed(0)
        losses.append(pipe.compute_fake_score_loss(*batch(0)[:3])["total"])
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-7)


def test_resumed_equals_straight():
    straight = pipeline(AMDPipeline, reward=brightness)
    losses, _, expected = train(straight, 4)
    first = pipeline(AMDPipeline, reward=brightness)
    _, _, random = train(first, 2)
    saved = json.dumps(first.objective.state_dict())
    second = pipeline(AMDPipeline, reward=brightness)
    second.student.load_state_dict(first.student.state_dict())
    second.fake_score.load_state_dict(first.fake_score.state_dict())
    second.objective.load_state_dict(json.loads(saved))
    resumed, _, got = train(second, 2, start=2, random=random)
    assert torch.equal(expected, got) and same(losses[-len(resumed) :], resumed) and same(weights(straight), weights(second))


def test_a_deepspeed_engine_as_teacher():
    """The real class, whose `eval()` returns None, around a network; initialising it would compile for a minute."""
    from deepspeed import DeepSpeedEngine

    engine = DeepSpeedEngine.__new__(DeepSpeedEngine)
    torch.nn.Module.__init__(engine)
    engine.module, engine.warn_unscaled_loss = wan(2), False
    assert engine.eval() is None
    pipe = AMDPipeline(wan(1), engine, wan(3), config(), reward=brightness)
    assert pipe.teacher is engine.module and not any(p.requires_grad for p in pipe.teacher.parameters())
    latents, noise, condition, negative = batch(0)
    pipe.compute_student_loss(latents, noise, condition, negative_encoder_hidden_states=negative)["total"].backward()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": 1.0}, "strength"),
        ({"amd": {"strenght": 1}}, "amd.strenght"),
        ({"amd": {"gan_weight": 1.0}}, "a discriminator on the fake score's features, which this host does not offer"),
        ({"amd": {"guidance_scale": 1.0}}, "host's own configuration"),
        ({"amd": {"strength": 0.3}}, "argument of AMDPipeline"),
        ({"reward": 3}, "reward"),
        ({"reward": {"name": "no_such"}}, "no_such"),
        ({"reward": {"weight": 1.0}}, "reward"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(InputError, match=message):
        pipeline(AMDPipeline, **options)


def test_a_host_that_changed_is_told_apart():
    class Changed:
        def compute_student_loss(self, data): ...

    expected = {"compute_student_loss": "self, latents", "update_ema": "self"}
    with pytest.raises(MissingDependency, match=r"takes \(self, data\), not \(self, latents\); update_ema\(self\) is gone"):
        HOST.check(Changed, expected)
    with pytest.raises(MissingDependency, match="not installed"):
        HOST._replace(distribution="no-such-host").load("json")
    with pytest.raises(MissingDependency, match=r"got 0\.47"):
        HOST._replace(minimum="9").load("json")


def test_advantage_guidance_through_tables_on_the_hosts_own_network():
    stock, ours = (pipeline(AMDPipeline, reward=brightness, sharpening=0, amd={"advantage_guidance": g}) for g in (0, 4.0))
    assert not stock.conditions.parameters() and ours.conditions.takes_outcomes
    expected, got = train(stock), train(ours)
    assert torch.equal(expected[2], got[2]), "the stream of random numbers"
    (table,) = ours.conditions.parameters()
    assert not table[0].any() and table[1].any() and table[2].any()
    assert ours.metrics["contrast_ratio"] > 0 and ours.metrics["advantage_guidance"] == 4
    assert not same(list(stock.student.parameters()), list(ours.student.parameters()))
    again = pipeline(AMDPipeline, reward=brightness, sharpening=0, amd={"advantage_guidance": 4.0})
    again.load_state_dict(json.loads(json.dumps(ours.state_dict())))
    assert again.state_dict() == ours.state_dict()
    without = pipeline(AMDPipeline, sharpening=0, amd={"advantage_guidance": "auto"})
    assert not without.conditions.parameters(), "without a reward the networks stay as they are"


def test_named_rewards_are_computed_where_the_student_is():
    with SimulatedDevice():
        student = wan(1)
        for parameter in student.parameters():
            put(parameter)
        ours = AMDPipeline(student, wan(2), wan(3), config(), reward="random", held_out=[{"name": "hackable", "device": "cpu"}])
    named = ours.bridge.reward, ours.validation._judges._reward
    assert [rewards._rewards.scorers.popitem()[1].device for rewards in named] == [SIMULATED, torch.device("cpu")]


def test_failures_are_replayed_and_a_resumed_run_has_them():
    options = {"reward": brightness, "strength": 0, "sharpening": 0, "amd": {"memory_share": 0.9, "advantage_guidance": 1.0}}
    stock, straight, first, second = (pipeline(AMDPipeline, **options) for _ in range(4))
    stock._failures = None
    plain, losses = train(stock, 8), train(straight, 8)
    assert torch.equal(plain[2], losses[2]), "the stream of random numbers"
    assert not same(plain[0], losses[0]) and straight.state_dict()["failures"]
    _, _, random = train(first, 4)
    second.student.load_state_dict(first.student.state_dict())
    second.fake_score.load_state_dict(first.fake_score.state_dict())
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    resumed = train(second, 4, start=4, random=random)
    assert same(losses[0][-len(resumed[0]) :], resumed[0]) and same(weights(straight), weights(second))


def test_a_fake_score_that_nobody_knows_is_refused_or_left_alone():
    class Other(torch.nn.Linear): ...

    for rungs, outcomes, option in ((0, True, "advantage_guidance"), (4, "if offered", "rung_conditioning")):
        with pytest.raises(InputError, match=rf"amd\.{option}: nobody says where a Other embeds the time"):
            FakeScoreConditions(rungs, outcomes, get_plugin_manager()).add_to(Other(1, 1))
    left = FakeScoreConditions(0, "if offered", get_plugin_manager())
    left.add_to(Other(1, 1))
    assert not left.takes_outcomes and not left.parameters()


def test_the_fake_score_may_be_conditioned_on_the_exit_rung():
    stock, ours = pipeline(DMDPipeline), pipeline(AMDPipeline, strength=0, sharpening=0, rung_conditioning=True)
    (table,) = ours.conditions.parameters()
    assert table.shape[0] == 4 and not ours.conditions.takes_outcomes
    torch.testing.assert_close(train(stock, 3)[0][:1], train(ours, 3)[0][:1])  # a table of zeros changes nothing
    train(ours, 24)
    assert (table != 0).any(1).all(), "every rung was trained"
    assert not same(weights(stock), weights(ours)[:-1])
    for wrong, message in (({"rung_conditioning": 4}, "true or false"), ({"rung_conditioning": True}, "backward_simulation")):
        with pytest.raises(InputError, match=f"rung_conditioning: .*{message}"):
            pipeline(AMDPipeline, cfg=config(backward_simulation=False), **wrong)


class Driver:
    """The parts of the host's NeMo AutoModel driver that `AMDDiffusionRecipe` overrides, with the signatures it has there."""

    def __init__(self, amd):
        self.cfg = {"dmd2.amd": amd}

    def _resolve_pipeline_cls(self):
        return DMDPipeline

    def _resolve_pipeline_kwargs(self, pipeline_cls):
        assert pipeline_cls is DMDPipeline
        return {}

    def _save_dmd_extras(self, path): ...
    def _restore_dmd_extras(self, restore_from): ...


def test_the_recipe_for_nemo_automodel(tmp_path):
    class Recipe(AMDDiffusionRecipe, Driver):
        def amd_decode(self):
            return lambda latents: latents

    def run():
        recipe = Recipe(
            {"strength": 0.3, "reward": {"name": "random"}, "side": "both", "rollouts": "harvest", "accumulation": 1}
        )
        cls = recipe._resolve_pipeline_cls()
        recipe._dmd_pipeline = pipeline(cls, **recipe._resolve_pipeline_kwargs(cls))
        return recipe

    recipe = run()
    assert isinstance(recipe._dmd_pipeline, DMDPipeline) and recipe._dmd_pipeline.objective.strength == 0.3
    assert recipe._dmd_pipeline._cycle is not None, "rollouts are harvested"
    train(recipe._dmd_pipeline, 2)
    recipe._save_dmd_extras(str(tmp_path))
    again = run()
    again._restore_dmd_extras(str(tmp_path))
    assert again._dmd_pipeline.state_dict() == recipe._dmd_pipeline.state_dict()
    assert again._dmd_pipeline.state_dict()["turns"] == {"student": 1, "fake_score": 1}
    saved = tmp_path / "amd_state.json"
    for damaged in ("", '{"objective": ', "[]", "{}", '{"objective": [], "turns": 5}', '{"objective": 5, "turns": {}}'):
        saved.write_text(damaged)
        with pytest.raises(InputError):
            again._restore_dmd_extras(str(tmp_path))
    with pytest.raises(InputError, match="amd_decode"):
        type("NoDecode", (AMDDiffusionRecipe, Driver), {})({"reward": "random"})._resolve_pipeline_kwargs(DMDPipeline)
    with pytest.raises(InputError, match=r"dmd2\.amd\.accelerator: is set in Python"):
        Recipe({"accelerator": "auto"})._resolve_pipeline_kwargs(DMDPipeline)
    for option in ({"rung_conditioning": True}, {"advantage_guidance": "auto"}):
        with pytest.raises(InputError, match=rf"dmd2\.amd\.{next(iter(option))}: adds weights to the fake score"):
            Recipe(option)._resolve_pipeline_kwargs(DMDPipeline)


def test_every_method_that_is_overridden_is_compared():
    assert unchecked("modelopt", (AMDPipeline, DMDPipeline)) == set()
