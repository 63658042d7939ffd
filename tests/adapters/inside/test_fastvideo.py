"""`AMDMethod` against FastVideo's own `DMD2Method`, both chosen in YAML and run by the host's entry point and trainer."""

import shlex
import socket

import fastvideo.train.trainer
import pytest
import torch
import yaml
from fastvideo.train.entrypoint.train import run_training_from_config
from fastvideo.train.methods.distribution_matching import self_forcing
from fastvideo.train.models.base import ModelBase
from plugin import unchecked
from tiny_fastvideo import write_data
from toy_fastvideo import OURS, STATE, STOCK, Log, Probe, Toy, settings
from typer.testing import CliRunner

from amd_plugin.adapters import conditioning, fastvideo_method
from amd_plugin.adapters import fastvideo as adapter
from amd_plugin.adapters.fastvideo_host import Callback, DMD2Method, SelfForcingMethod
from amd_plugin.errors import InputError
from tests.helpers.documentation import blocks


@pytest.fixture(autouse=True)
def one_process(monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(fastvideo.train.trainer, "build_tracker", lambda *args, **kwargs: Log())
    monkeypatch.setattr(ModelBase, "device", torch.device("cpu"))
    # Its checkpoints hold the state of CUDA's generator without asking whether there is one.
    monkeypatch.setattr(torch.cuda, "get_rng_state", torch.get_rng_state)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state: None)


CAUSAL = {"chunk_size": 1, "student": "toy_fastvideo.CausalToy"}


def run(tmp_path, reward=None, student=None, **options):
    """Trains as the YAML says: weights of student and critic, gradients of each step, next draw, the tracker's lines."""
    Log.lines, Toy.calls = [], []
    path = tmp_path / "run.yaml"
    written = settings(tmp_path, **options)
    written["models"]["student"]["_target_"] = student or "toy_fastvideo.Toy"
    path.write_text(yaml.safe_dump(written))
    if reward is None:
        run_training_from_config(str(path))
    else:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fastvideo_method, "make_reward", lambda spec, plugins, device: reward)
            run_training_from_config(str(path))
    method = Probe.method
    weights = [p.detach().clone() for r in (method.student, method.critic) for p in r.transformer.parameters()]
    return weights, Probe.gradients, method.cuda_generator.get_state(), Log.lines


def brightness(media, prompts):
    assert media.shape == (4, 3, 2, 4, 4) and media.min() >= 0 and prompts == ["a cat", "a cat", "a dog", "a dog"]
    return media.mean((1, 2, 3, 4))


def bright(media, prompts):
    return brightness(media, prompts)


bright.differentiable = True


def same(a, b):
    return len(a) == len(b) and all(same(x, y) if isinstance(x, list) else torch.equal(x, y) for x, y in zip(a, b, strict=True))


def losses(lines):
    return [[line["generator_loss"], line["fake_score_loss"]] for line in lines if "generator_loss" in line]


@pytest.mark.parametrize(
    "options", [{"amd": {"strength": 0, "sharpening": 0, "reward": {"name": "random"}}}, {"amd": {}}, {}], ids=str
)
def test_nothing_to_steer_by_is_the_host_to_the_bit(tmp_path, options):
    stock, ours = run(tmp_path, method=STOCK), run(tmp_path, **options)
    assert same(list(stock[:3]), list(ours[:3])) and losses(stock[3]) == losses(ours[3])


@pytest.mark.parametrize(
    "reward", [lambda m, p: torch.ones(4), lambda m, p: [None] * 4, lambda m, p: 1 / 0], ids="equal nan raises".split()
)
def test_equal_and_failed_rewards_are_the_host_through_our_own_code(tmp_path, reward):
    stock, ours = run(tmp_path, method=STOCK), run(tmp_path, reward=reward, amd={})
    assert torch.equal(stock[2], ours[2]), "the stream of random numbers"
    torch.testing.assert_close(losses(ours[3]), losses(stock[3]), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(ours[1], stock[1], rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(ours[0], stock[0], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "part", [{"strength": 0.5, "sharpening": 0, "side": "both"}, {"strength": 0, "sharpening": 1.0}], ids=str
)
def test_rewards_steer_and_are_logged(tmp_path, part):
    stock, ours = run(tmp_path, method=STOCK), run(tmp_path, reward=brightness, amd=part)
    assert torch.equal(stock[2], ours[2]) and not same(stock[0], ours[0])
    assert {"amd/reward", "amd/failed_rewards", "update_student"} <= set(ours[3][-1])
    assert ours[3][-1]["amd/failed_rewards"] == 0


CONDITIONED = {"rung_conditioning": True, "advantage_guidance": 4.0, "reward_gradient": 0.1, "outcome_lr": 0.08}


REMEMBERING = {"rung_conditioning": True, "advantage_guidance": 4.0, "memory_share": 0.5, "fast_rollout": True}


@pytest.mark.parametrize("amd", [{}, CONDITIONED, REMEMBERING], ids=str)
def test_resumed_equals_straight(tmp_path, monkeypatch, amd):
    monkeypatch.setitem(conditioning.PLACES, "Net", "time")
    amd = {**amd, "reward": "replaced"}
    first, again = tmp_path / "a", tmp_path / "b"
    first.mkdir(), again.mkdir()
    straight = run(first, reward=bright, amd=amd, callbacks=STATE, save=4, steps=8)
    updates = Probe.method.objective.state_dict()
    if "rung_conditioning" in amd:
        rungs, outcomes = Probe.method._conditions.parameters()
        drawn = (rungs != 0).any(1)  # one rung for student and critic leaves some out in eight steps
        assert (
            (drawn.any() if "fast_rollout" in amd else drawn.all())
            and not outcomes[0].any()
            and outcomes[1].any()
            and outcomes[2].any()
        )
        gain = 8 if "outcome_lr" in amd else 1  # the critic's rate is .01, above the default of the outcomes
        assert torch.equal(Probe.method.critic.transformer.state_dict()["outcomes.fake_score.0.table"], gain * outcomes)
        assert Probe.method._metrics["contrast_ratio"] > 0 and Probe.method._metrics.get("failed_gradients", 0) == 0
    remembered = Probe.method.failures and Probe.method.failures.state_dict()
    assert bool(remembered) is ("memory_share" in amd)
    resumed = run(again, reward=bright, amd=amd, callbacks=STATE, steps=8, resume=str(first / "checkpoint-4"))
    assert resumed[3][0]["step"] == 5
    assert same(straight[0], resumed[0]) and same(straight[1][4:], resumed[1]) and torch.equal(straight[2], resumed[2])
    assert Probe.method.objective.state_dict() == updates
    assert sum(updates["rewards"]["updates"].values()) > (7 if "fast_rollout" in amd else 8)
    assert (Probe.method.failures and Probe.method.failures.state_dict()) == remembered


def test_a_run_resumed_with_another_rate_of_outcomes_has_the_rows_that_it_had(tmp_path, monkeypatch):
    monkeypatch.setitem(conditioning.PLACES, "Net", "time")
    found = {}

    def watched(self, method, iteration=0):
        rows = method.critic.transformer.state_dict()["outcomes.fake_score.0.table"]
        found[iteration] = rows.clone(), method._conditions.parameters()[0].detach().clone()

    monkeypatch.setattr(adapter.AMDStateCallback, "on_before_optimizer_step", watched)
    resume, before = "", []
    for outcome_lr, of_critic, gain in ((0.32, 0.01, 32), (0.02, "1e-2", 2), (0.02, 1.0, 1)):  # YAML has 1e-2 as text
        folder = tmp_path / f"gain-{gain}"
        folder.mkdir()
        options = {"advantage_guidance": 4.0, "outcome_lr": outcome_lr, "reward": "replaced"}
        run(folder, reward=bright, amd=options, callbacks=STATE, save=4, steps=5, resume=resume,
            fake_score_learning_rate=of_critic)  # fmt: skip
        rows, table = found[5]  # as the checkpoint has them
        assert torch.equal(rows, gain * table) and rows.any()
        before.append(rows)
        resume = resume or str(folder / "checkpoint-4")
    assert torch.equal(before[0], before[1]) and torch.equal(before[0], before[2])


def test_a_run_goes_on_from_a_checkpoint_of_the_stock_trainer_and_from_its_own_afterwards(tmp_path):
    names = ("stock", "off", "on", "again")
    folders = [tmp_path / name for name in names]
    [folder.mkdir() for folder in folders]
    stock = run(folders[0], method=STOCK, save=2, steps=6)
    off = {"strength": 0, "sharpening": 0, "reward": "replaced"}
    exact = run(folders[1], reward=bright, amd=off, callbacks=STATE, steps=6, resume=str(folders[0] / "checkpoint-2"))
    assert same(stock[0], exact[0]) and exact[3][0]["step"] == 3
    on = {"memory_share": 0.5, "reward": "replaced"}
    straight = run(folders[2], reward=bright, amd=on, callbacks=STATE, save=4, steps=6, resume=str(folders[0] / "checkpoint-2"))
    state = Probe.method.objective.state_dict()
    resumed = run(folders[3], reward=bright, amd=on, callbacks=STATE, steps=6, resume=str(folders[2] / "checkpoint-4"))
    assert same(straight[0], resumed[0]) and Probe.method.objective.state_dict() == state


def test_failures_come_again_with_their_own_conditions_in_the_critics_turn_only(tmp_path, monkeypatch):
    replayed, predict = {"student": [], "critic": [], "teacher": []}, Toy.predict_noise

    def recorded(self, x, timestep, batch, **named):
        if named["conditional"]:
            texts = batch.conditional_dict["encoder_hidden_states"]
            replayed[self.name].append(bool((texts == texts[0]).all()))  # a batch of the host's has two texts
        return predict(self, x, timestep, batch, **named)

    monkeypatch.setattr(Toy, "predict_noise", recorded)
    stock = run(tmp_path, method=STOCK, steps=12)
    amd = {"strength": 0, "sharpening": 0, "memory_share": 0.999}
    ours = run(tmp_path, reward=brightness, amd=amd, steps=12)
    assert torch.equal(stock[2], ours[2]), "the stream of random numbers"
    assert any(replayed["critic"]) and not any(replayed["student"] + replayed["teacher"]) and not same(stock[0], ours[0])
    run(tmp_path, amd=amd, steps=2)
    assert Probe.method.failures is None, "without a reward nothing fails"


def test_self_forcing(tmp_path, monkeypatch):
    # Its shift of noise levels comes with a pretrained pipeline; without one it is 0, and everything is NaN.
    scheduler = self_forcing.SelfForcingFlowMatchScheduler
    monkeypatch.setattr(self_forcing, "SelfForcingFlowMatchScheduler", lambda **kw: scheduler(**{**kw, "shift": 3.0}))
    stock = run(tmp_path, method=STOCK.replace("dmd2.DMD2Method", "self_forcing.SelfForcingMethod"), **CAUSAL)
    causal = {"method": OURS.replace("AMDMethod", "AMDSelfForcingMethod"), **CAUSAL}
    exact = run(tmp_path, amd={"strength": 0, "sharpening": 0}, **causal)
    assert same(list(stock[:3]), list(exact[:3])) and all(w.isfinite().all() for w in stock[0])
    near = run(tmp_path, reward=lambda m, p: torch.ones(4), amd={}, **causal)
    torch.testing.assert_close(near[0], stock[0], rtol=1e-3, atol=1e-5)
    assert torch.equal(near[2], stock[2])
    steered = run(tmp_path, reward=brightness, amd={}, **causal)
    assert not same(stock[0], steered[0]) and torch.equal(steered[2], stock[2])
    run(tmp_path, reward=brightness, amd={"fast_rollout": True}, **causal)
    assert {size for name, size, _ in Toy.calls if name == "teacher"} == {8}


@pytest.mark.parametrize(
    ("amd", "message"),
    [({"rung_conditioning": True}, "rung_conditioning: nobody says where a Net embeds"),
     ({"reward": {"name": "random"}, "held_out": {"name": "hackable"}}, "held_out: needs the callbacks validation and amd"),
     ({"group_size": 2}, "amd.group_size: needs FastVideo's own loader of parquet files .*, got a list"),
     ({"strenght": 0.5}, "amd.strenght"), ({"strength": 2.0}, "strength"), ({"fast_rollout": 1}, "fast_rollout"),
     ({"guidance_scale": 3.0}, "host's own"), ({"reward": {"name": "nope"}}, "nope")],
)  # fmt: skip
def test_bad_options_end_the_run_before_its_first_step(tmp_path, amd, message):
    with pytest.raises(InputError, match=message):
        run(tmp_path, amd=amd)
    assert not Log.lines


def test_a_model_that_decodes_nothing_gets_no_reward(tmp_path, monkeypatch):
    monkeypatch.delattr(Toy, "decode_latents")
    with pytest.raises(InputError, match="decode_latents"):
        run(tmp_path, amd={"reward": {"name": "random"}})


def test_the_hosts_own_scorers(tmp_path, monkeypatch):
    import fastvideo.train.methods.rl.rewards as rewards

    build = rewards.build_multi_reward_scorer
    own = {"sharp": lambda media, prompts: media.std((1, 2, 3, 4))}
    monkeypatch.setattr(
        rewards, "build_multi_reward_scorer", lambda weights, device: build(weights, device=device, scorers=own)
    )
    ours = run(tmp_path, amd={"reward": {"fastvideo": {"sharp": 2.0}}}, steps=2)
    assert ours[3][-1]["amd/failed_rewards"] == 0


def merged(settings, page):
    """`settings` with the mappings of `page` in them."""
    for key, value in page.items():
        settings[key] = merged(settings.get(key) or {}, value) if isinstance(value, dict) else value
    return settings


def test_the_pages_yaml_trains(tmp_path, monkeypatch):
    [block] = blocks("docs/hosts/fastvideo.md", "yaml")
    path, asked = tmp_path / "run.yaml", []
    write_data(tmp_path / "data", 5, ["a cat", "a dog"])
    written = merged(settings(tmp_path, method=STOCK, steps=2, data=tmp_path / "data"), yaml.safe_load(block))
    written["models"]["student"]["_target_"] = "toy_fastvideo.ParquetToy"
    path.write_text(yaml.safe_dump(written))
    # Its reward needs weights from the internet.
    reward = lambda media, prompts: prompts_of.append(prompts) or media.mean((1, 2, 3, 4))  # noqa: E731
    prompts_of = []
    monkeypatch.setattr(fastvideo_method, "make_reward", lambda spec, plugins, device: asked.append(spec) or reward)
    run_training_from_config(str(path))
    assert prompts_of and all(len(set(prompts)) == 1 for prompts in prompts_of), "group_size: 4, of a batch of 4"
    assert asked == [{"name": "clip", "path": "openai/clip-vit-large-patch14"}] and type(Probe.method) is adapter.AMDMethod
    assert any(type(callback) is adapter.AMDStateCallback for callback in Probe.callbacks._callbacks.values())


def test_the_pages_command_lines(tmp_path, monkeypatch):
    """`amd-plugin host fastvideo -- --config run.yaml ...`, also as torchrun starts it: a YAML of the host, untouched."""
    from amd_plugin.cli import app

    lines = [line for block in blocks("docs/hosts/fastvideo.md", "") for line in block.splitlines()]
    commands = [words[words.index("host") :] for words in map(shlex.split, lines) if "host" in words]
    assert len(commands) == 2
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings(tmp_path, method=STOCK, steps=2)))
    monkeypatch.chdir(tmp_path)
    for command in commands:
        done = CliRunner().invoke(app, [*command, "--method.amd.strength", "0.25"], catch_exceptions=False)
        assert done.exit_code == 0 and type(Probe.method) is adapter.AMDMethod and Probe.method.objective.strength == 0.25
        assert Log.lines[-1]["step"] == 2


def test_a_configuration_that_cannot_be_used_ends_by_name_before_a_model_loads(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    another = settings(tmp_path, method="fastvideo.train.methods.fine_tuning.finetune.FineTuneMethod")
    nameless = {**another, "method": {}}
    for name, text in {
        "another": yaml.safe_dump(another),
        "nameless": yaml.safe_dump(nameless),
        "empty": "",
        "list": "[1]",
        "torn": "a: [",
    }.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    for name, message in (
        ("nowhere", r"--config: nowhere\.yaml is not a file"),
        ("empty", r"empty\.yaml: FastVideo cannot read it: .*mapping"),
        ("list", r"list\.yaml: FastVideo cannot read it: .*mapping"),
        ("torn", r"torn\.yaml: FastVideo cannot read it: ParserError"),
        ("nameless", r"nameless\.yaml: FastVideo cannot read it: ValueError: method must have a '_target_' key"),
        ("another", r"another\.yaml: method\._target_ must be one of DMD2Method, SelfForcingMethod, got .*FineTuneMethod"),
    ):
        with pytest.raises(InputError, match=message):
            adapter.launch(["--config", f"{name}.yaml"])


def test_every_method_that_is_overridden_is_compared():
    pairs = [
        (adapter.AMDMethod, DMD2Method),
        (adapter.AMDSelfForcingMethod, SelfForcingMethod),
        (adapter.AMDStateCallback, Callback),
    ]
    assert unchecked("fastvideo", *pairs) == set()
