"""`AMDModel` against FastGen's own `DMD2Model`, on its tiny EDM network."""

import argparse
import copy
import json
import os
import shlex
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from fastgen.configs.config_utils import override_config_with_opts
from fastgen.configs.methods.config_dmd2 import ModelConfig
from fastgen.methods import DMD2Model
from plugin import Levels, unchecked
from ranks import two_ranks

from amd_plugin.adapters import fastgen as adapter
from amd_plugin.adapters.fastgen import AMDModel
from amd_plugin.adapters.fastgen_host import Callback, load
from amd_plugin.errors import InputError
from tests.helpers.documentation import blocks


class Reached(Exception):
    pass


def stop(config):
    raise Reached(config)


def model(cls, gan=False, guidance=2.0, steps=1, **options):
    config = ModelConfig()
    config.student_sample_steps = steps
    config.net = override_config_with_opts(config.net, ["-", "img_resolution=8", "channel_mult=[1]", "channel_mult_noise=1"])
    config.discriminator = override_config_with_opts(
        config.discriminator, ["-", "feature_indices=[0]", "all_res=[8]", "in_channels=128"]
    )
    config.device, config.precision, config.pretrained_model_path = torch.device("cpu"), "float32", ""
    config.student_update_freq, config.input_shape, config.guidance_scale = 2, [3, 8, 8], guidance
    config.gan_loss_weight_gen = 0.1 if gan else 0.0
    torch.manual_seed(0)
    amd_model = cls(config, **options)
    amd_model.on_train_begin()
    amd_model.init_optimizers()
    return amd_model


def train(amd_model, steps=4, start=0):
    """The host's own order of calls: losses, gradients of the last step, weights, state of the generator."""
    torch.manual_seed(1)
    losses = []
    for step in range(start, start + steps):
        digits = torch.nn.functional.one_hot(torch.tensor([step % 10] * 2 + [3] * 2), 10).float()
        data = {"real": torch.randn(4, 3, 8, 8), "condition": digits, "neg_condition": torch.zeros(4, 10)}
        amd_model.optimizers_zero_grad(step)
        loss, _ = amd_model.single_train_step(data, step)
        loss["total_loss"].backward()
        amd_model.optimizers_schedulers_step(step)
        losses.append(loss["total_loss"].detach())
    gradients = [p.grad.clone() for p in amd_model.net.parameters() if p.grad is not None]
    return losses, gradients, [*amd_model.net.parameters(), *amd_model.fake_score.parameters()], torch.get_rng_state()


def same(a, b):
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("gan", [False, True])
@pytest.mark.parametrize("amd", [{"strength": 0, "sharpening": 0, "reward": {"name": "random"}}, None])
def test_nothing_to_steer_by_is_the_host_to_the_bit(gan, amd):
    stock, ours = train(model(DMD2Model, gan)), train(model(AMDModel, gan, amd=amd))
    assert all(same(a, b) for a, b in zip(stock[:3], ours[:3], strict=True)) and torch.equal(stock[3], ours[3])


@pytest.mark.parametrize("gan", [False, True])
@pytest.mark.parametrize("guidance", [None, 1.0, 3.0])
@pytest.mark.parametrize("reward", [lambda m, p: torch.ones(len(m)), lambda m, p: 1 / 0])
def test_equal_and_failed_rewards_are_the_host_through_amds_code(gan, guidance, reward):
    stock, ours = (
        train(model(c, gan, guidance, **o), 2) for c, o in ((DMD2Model, {}), (AMDModel, {"amd": {"reward": reward}}))
    )
    torch.testing.assert_close(ours[0], stock[0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(ours[1], stock[1], rtol=1e-3, atol=1e-6)
    assert torch.equal(stock[3], ours[3])


def test_rewards_steer_both_turns():
    bright = lambda media, prompts: media.mean((1, 2, 3))  # noqa: E731
    stock = train(model(DMD2Model), 4)
    for part in ({"strength": 0.5, "sharpening": 0, "side": "both"}, {"strength": 0, "sharpening": 1.0}):
        ours = train(model(AMDModel, amd={**part, "reward": bright}), 4)
        assert not same(stock[2], ours[2]) and torch.equal(stock[3], ours[3])


@pytest.mark.parametrize(("gan", "steps"), [(True, 1), (False, 2)])
def test_failures_come_again_with_their_own_conditions_and_resume(gan, steps):
    amd = {"strength": 0, "sharpening": 1.0, "memory_share": 0.999, "reward": lambda media, prompts: media.mean((1, 2, 3))}
    ours, calls = model(AMDModel, gan, steps=steps, amd=amd), []

    def watched(module, args, kwargs):
        calls.append((torch.is_grad_enabled(), kwargs["condition"].argmax(1).tolist()))

    ours.fake_score.register_forward_pre_hook(watched, with_kwargs=True)
    stock, kept = train(model(DMD2Model, gan, steps=steps), 8), train(ours, 8)
    assert torch.equal(stock[3], kept[3]), "the stream of random numbers"
    replaced = [digits != [step, step, 3, 3] for step, (_, digits) in enumerate(calls)]
    assert any(replaced) and not any(replaced[::2]) and [trained for trained, _ in calls] == [False, True] * 4
    assert all(set(digits) <= {3, *range(1, step + 1, 2)} for step, (trained, digits) in enumerate(calls) if trained)

    again, states = model(AMDModel, gan, steps=steps, amd=amd), (adapter.AMDStateCallback(), adapter.AMDStateCallback())
    states[0]._model, states[1]._model = ours, again
    states[1].load_state_dict(json.loads(json.dumps(states[0].state_dict())))
    for kind in ("model_dict", "optimizer_dict", "scheduler_dict"):
        for name, part in getattr(again, kind).items():
            part.load_state_dict(copy.deepcopy(getattr(ours, kind)[name].state_dict()))
    straight, resumed = train(ours, 4, start=8), train(again, 4, start=8)
    assert same(straight[0], resumed[0]) and same(straight[2], resumed[2])
    assert ours.failures.state_dict() == again.failures.state_dict() != {}


def test_without_an_adversary_the_teachers_graph_is_not_built():
    amd_model, grad_modes = model(AMDModel), []
    amd_model.teacher.register_forward_hook(lambda module, args, output: grad_modes.append(torch.is_grad_enabled()))
    train(copy.copy(amd_model), 1)
    assert grad_modes == [False, False]


def test_bad_options():
    with pytest.raises(InputError, match="strenght"):
        model(AMDModel, amd={"strenght": 1})
    with pytest.raises(InputError, match=r"model_class\.amd\.rollouts: harvest needs rollouts, and FastGen has none"):
        model(AMDModel, amd={"rollouts": "harvest"})
    with pytest.raises(InputError, match=r"model_class\.amd\.group_size: needs a host that deals its rows out"):
        model(AMDModel, amd={"group_size": 2})
    for section in (3, False, []):
        with pytest.raises(InputError, match="mapping"):
            model(AMDModel, amd=section)
    for option in ("share_rungs", "rung_conditioning"):
        with pytest.raises(InputError, match=rf"model_class\.amd\.{option}: needs a student of several steps"):
            model(AMDModel, amd={option: True})
    unwatched = model(AMDModel, amd={"reward": {"name": "random"}, "held_out": {"name": "random"}})
    with pytest.raises(InputError, match=r"held_out: .* needs dataloader_val, and the callback AMDStateCallback"):
        train(unwatched, 1)


def test_another_method_is_refused_and_a_subclass_of_ours_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(load("fastgen.utils"), "instantiate", stop)
    for name in ("dmd2", "sft"):
        (tmp_path / f"of_{name}.py").write_text(f"from fastgen.configs.methods.config_{name} import create_config\n")
    for words, message in (
        (["--config=of_sft.py"], "of_sft.py: model_class must be DMD2Model, which AMD is a form of, got SFTModel"),
        (["--config=nowhere.py"], "nowhere.py is not a file here"),
    ):
        with pytest.raises(InputError, match=message):
            adapter.launch(words)
    for words, target in (([], "amd_plugin.adapters.fastgen.AMDModel"), (["-", "model_class._target_=mine.Own"], "mine.Own")):
        with pytest.raises(Reached) as reached:
            adapter.launch(["--config=of_dmd2.py", *words])
        assert reached.value.args[0]._target_ == target


def test_every_method_that_is_overridden_is_compared():
    assert unchecked("fastgen", (AMDModel, DMD2Model), (adapter.AMDStateCallback, Callback)) == set()


def test_a_reward_that_fails_on_one_of_two_ranks_holds_up_neither():
    first, second = two_ranks("rank_fastgen")
    assert first["failed"] == second["failed"] == 0.5 and first["finite"] and second["finite"]
    assert first["advantages"] == second["advantages"] and any(first["advantages"]), "rank 1 has samples of the same prompts"


def test_plugins_move_levels_and_set_the_strength():
    plugin = Levels()

    class Own(AMDModel):
        plugins = plugin.plugins

    amd_model = model(Own, amd={"side": "both", "reward": lambda media, prompts: media.mean((1, 2, 3))})
    levels = []
    amd_model.teacher.register_forward_pre_hook(lambda module, args: levels.append(amd_model._fractions(args[1])))
    train(amd_model, 4)
    turns = [("student", 0), ("fake_score", 0), ("student", 0), ("fake_score", 1)]
    assert plugin.moved == [(role, step, 4, 4) for role, step in turns]
    levels = torch.cat(levels)
    assert ((levels >= 0.4) & (levels <= 0.5)).all() and len(set(plugin.random)) == 4
    assert amd_model.objective.schedule_factor == 0.5 and plugin.steps[0][2] is False and plugin.steps[-1][2] is True


def test_amds_own_draws_have_the_seed_of_fastgens_trainer():
    ours, state = model(AMDModel, amd={"reward": Brightness()}), adapter.AMDStateCallback()
    state.config = SimpleNamespace(trainer=SimpleNamespace(max_iter=3, seed=5))
    state.on_model_init_start(ours)
    assert (ours.bridge.seed, ours.max_iter) == (5, 3)


@pytest.mark.parametrize(
    ("schedule", "times", "fractions"),
    [("edm", [0.002, 2.515, 80.0], [0, 0.5, 1]), ("rf", [0.0, 0.5, 0.999], [0, 0.5 / 0.999, 1])],
)
def test_a_fraction_of_the_schedule_is_a_share_of_edms_steps_and_of_other_schedules_times(schedule, times, fractions):
    ours, times = model(AMDModel, amd={"reward": Brightness()}), torch.tensor(times, dtype=torch.float64)
    ours.net.set_noise_schedule(schedule)
    torch.testing.assert_close(ours._fractions(times), torch.tensor(fractions, dtype=torch.float64), rtol=1e-3, atol=0)
    ours.bridge.move_noise_levels = lambda levels, *key: levels
    torch.testing.assert_close(ours._move_noise_levels(times, "student"), times)


def test_prompts_reach_the_reward_in_both_turns_and_validation_is_the_hosts():
    prompts_scored = []
    amd_model = model(AMDModel, amd={"reward": lambda media, prompts: prompts_scored.append(prompts) or media.mean((1, 2, 3))})
    texts = ["a fox", "a fox", "a boat", "a boat"]
    data = {"real": torch.randn(4, 3, 8, 8), "condition": torch.eye(10)[[3, 3, 7, 7]], "neg_condition": torch.zeros(4, 10)}
    for step in (1, 2):
        amd_model.single_train_step({**data, "condition_raw": texts}, step)
    assert prompts_scored == [texts, texts]
    before = amd_model.objective.state_dict()
    with torch.no_grad():
        loss, _ = amd_model.single_train_step({**data, "condition_raw": texts}, 2)
    assert (
        len(prompts_scored) == 2
        and amd_model.objective.state_dict() == before
        and not any(name.startswith("amd_") for name in loss)
    )


class Brightness:
    differentiable = True

    def __call__(self, media, prompts):
        return media.flatten(1).mean(1)


def test_rungs_outcomes_and_the_rewards_gradient_reach_objective_and_fake_score():
    options = {"sharpening": 0, "reward": Brightness(), "reward_gradient": 0.1, "advantage_guidance": 4.0}
    several = {"share_rungs": True, "rung_conditioning": True}
    ours = model(AMDModel, steps=4, amd={**options, **several})
    train(ours, 12)
    assert ours._rungs[2] == ours._rungs[3], "samples of a prompt share a rung"
    assert len(ours.objective.state_dict()["rewards"]["updates"]) > 1, "statistics of each rung"
    rungs, outcomes = ours._conditions.parameters()
    assert rungs.shape[0] == 4 and (rungs != 0).any(1).all()
    assert not outcomes[0].any() and outcomes[1].any() and outcomes[2].any()
    assert ours.config.fake_score_optimizer.lr == 1e-4, "so that 64 times it is nearest to 5e-3"
    assert torch.equal(ours.fake_score.state_dict()["outcomes.fake_score.0.table"], 64 * outcomes)
    assert {"contrast_ratio", "failed_gradients"} <= set(ours._metrics) and ours._metrics["failed_gradients"] == 0
    with pytest.raises(InputError, match="share_rungs: must be true or false"):
        model(AMDModel, amd={"share_rungs": 3})


def test_the_pages_command_lines_name_our_classes_to_the_hosts_own_train_py(monkeypatch):
    """Up to the point where the networks would be built, which needs a GPU."""
    from fastgen.utils import scripts

    lines = [line for block in blocks("docs/hosts/fastgen.md", "") for line in block.splitlines()]
    ours, theirs = ([words for words in map(shlex.split, lines) if words[0] == name] for name in ("amd-plugin", "python"))
    monkeypatch.chdir(os.environ["PYTHONPATH"].split(os.pathsep)[0])  # the checkout, in which FastGen's examples lie
    monkeypatch.setattr(load("fastgen.utils"), "instantiate", stop)
    for [words] in (ours, theirs):
        words = [word.replace("...", ours[0][ours[0].index("--") + 1].partition("=")[2]) for word in words]
        with pytest.raises(Reached) as reached:
            if words[0] == "python":
                monkeypatch.setattr(sys, "argv", words[1:])
                stop(scripts.setup(scripts.parse_args(argparse.ArgumentParser())).model_class)
            adapter.launch(words[words.index("--") + 1 :])
        assert reached.value.args[0]._target_ == "amd_plugin.adapters.fastgen.AMDModel" and reached.value.args[0].amd


CONFIG = """
import torch
from fastgen.configs.config_utils import override_config_with_opts
from fastgen.configs.methods.config_dmd2 import create_config as stock
from fastgen.utils import LazyCall as L


class Digits:
    def __init__(self, batch_size=4, sampler_start_idx=None):
        self.batch_size = batch_size

    def __iter__(self):
        while True:
            digits = torch.eye(10)[[3, 3, 7, 7]]
            yield {"real": torch.randn(4, 3, 8, 8), "condition": digits, "neg_condition": torch.zeros(4, 10)}


class Few(Digits):
    def __iter__(self):
        yield from (batch for batch, _ in zip(super().__iter__(), range(2)))


def create_config():
    config = stock()
    config.trainer.callbacks = {}
    net = ["-", "img_resolution=8", "channel_mult=[1]", "channel_mult_noise=1"]
    config.model.net = override_config_with_opts(config.model.net, net)
    config.model.device, config.model.precision = torch.device("cpu"), "float32"
    config.model.pretrained_model_path, config.model.gan_loss_weight_gen = "", 0.0
    config.model.student_update_freq, config.model.input_shape = 2, [3, 8, 8]
    config.dataloader_train, config.dataloader_val = L(Digits)(batch_size=4), L(Few)(batch_size=4)
    return config
"""


def test_the_command_line_and_its_checkpoints(tmp_path):
    """`amd-plugin host fastgen`: the host's own trainer, and AMD's running statistics in its own checkpoints."""
    (tmp_path / "run_config.py").write_text(CONFIG)
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path]), "FASTGEN_OUTPUT_ROOT": str(tmp_path / "out")}

    def host(*words):
        command = [sys.executable, "-W", "ignore", "-c", "import conftest; from amd_plugin.cli import main; main()"]
        amd = "+model_class.amd={strength: 0.25, reward: {name: random}, held_out: {name: hackable}}"
        command += ["host", "fastgen", "--", "--config=run_config.py", "-", "trainer.save_ckpt_iter=2", amd, *words]
        done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return {
            int(path.stem): torch.load(path, weights_only=False)["callbacks"]["amd"]
            for path in sorted((tmp_path / "out").rglob("*.pth"))
        }

    first = host("trainer.max_iter=3")
    updates = lambda states: {step: state["objective"]["rewards"]["updates"]["0"] for step, state in states.items()}  # noqa: E731
    assert updates(first) == {2: 2, 3: 2}, "the host counts one more than it makes"
    resumed = host("trainer.max_iter=5", "trainer.resume=True")
    assert updates(resumed) == {2: 2, 3: 2, 4: 3, 5: 3}
    assert [row["step"] for row in first[3]["validations"]] == [0, 3], "before the first step and after the last"
    assert [row["step"] for row in resumed[5]["validations"]] == [0, 3, 5] and "held_out/hackable" in resumed[5]["validations"][
        0
    ]
    assert resumed[2] == first[2] and resumed[4]["objective"]["rewards"]["spread"]["0"] > 0
