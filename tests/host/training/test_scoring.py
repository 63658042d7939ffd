"""Rewards inside a run: what is decoded, what failures do, and that processes of their own change nothing."""

import json
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from accelerate import Accelerator

from amd_plugin.config import RewardConfig
from amd_plugin.errors import InputError, RunError
from amd_plugin.hookspecs import hookimpl
from amd_plugin.host import checkpoint, run
from amd_plugin.host.training import setup
from amd_plugin.host.training.trainer import Trainer
from tests.helpers import sample_rewards
from tests.helpers.recipes import TINY
from tests.helpers.training import weights


def failing(share, kind="none"):
    """Fails on the first `share` of each batch, or as a whole every time."""

    def reward(media, prompts):
        if kind == "raises":
            raise OSError("the server is gone")
        values = media.flatten(1)[:, 0].clone()
        values[: int(share * len(media))] = {"none": torch.nan, "inf": torch.inf, "huge": 3e38}[kind]
        return values

    return reward


@pytest.fixture
def with_rewards(plugins):
    class Plugin:
        @hookimpl
        def distill_rewards(self):
            return {"failing": failing_factory, **sample_rewards.FACTORIES}

    def failing_factory(share: float = 0.5, kind: str = "none"):
        return failing(share, kind)

    plugins.register(Plugin())
    return plugins


def trained(recipe, plugins, cycles=2):
    trainer = Trainer(recipe, plugins, Accelerator(cpu=True))
    try:
        for _ in range(cycles):
            trainer.cycle()
    finally:
        if trainer.rewards is not None:
            trainer.rewards.close()
    return trainer


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def spy_on_decode(trainer):
    seen, decode = [], trainer.backbone.decode

    def spy(samples):
        seen.append(len(samples))
        return decode(samples)

    trainer.backbone.decode = spy
    return seen


@pytest.mark.parametrize(
    ("objective", "overrides"),
    [("dmd", ()), ("amd", ("objective.strength=0", "objective.sharpening=0")), ("decoupled_dmd", ())],
)
def test_nothing_is_decoded_where_no_reward_is_listened_to(tiny, plugins, objective, overrides):
    trainer = Trainer(tiny(*overrides, objective=objective), plugins, Accelerator(cpu=True))
    seen = spy_on_decode(trainer)
    assert not any(name.startswith("reward") for name in trainer.cycle())
    assert seen == [] and trainer.rewards is None


def test_all_rewards_of_a_batch_share_one_decoding(tiny, with_rewards):
    recipe = tiny("rewards=[{name: classifier}, {name: random}, {name: first}]")
    trainer = Trainer(recipe, with_rewards, Accelerator(cpu=True))
    seen = spy_on_decode(trainer)
    metrics = trainer.cycle()
    assert seen == [16] * 4
    assert {f"reward/{name}" for name in ("classifier", "random", "first")} <= metrics.keys()


def test_an_evaluation_decodes_each_sample_once(tiny, with_rewards, tmp_path, monkeypatch):
    recipe = tiny("evaluate.batch_size=40", "train.max_steps=1")
    seen = []

    class Watched(Trainer):
        def __init__(self, *args):
            super().__init__(*args)
            seen.append(spy_on_decode(self))

    monkeypatch.setattr(run, "Trainer", Watched)
    run.train(recipe, with_rewards, tmp_path / "run")
    assert seen == [[16] * 4 + [40] * 4]
    (row,) = (line for line in lines(tmp_path / "run") if "held_out/tv" in line)
    assert row["evaluated_spread/classifier"] > 0 and row["hacking_alarm"] == 0


@pytest.mark.parametrize(("name", "size", "overrides"), [("modes2d", 2, ("rewards=[{name: by_label}]",)), ("digits", 1, ())])
def test_a_pool_changes_no_bit_of_a_run(tiny, with_rewards, name, size, overrides):
    here, there = (
        trained(tiny("model.width=16", *overrides, f"rewards.0.pool={pool}", name=name), with_rewards) for pool in (0, size)
    )
    assert there.rewards.overlaps and not here.rewards.overlaps
    assert here.objective.state_dict() == there.objective.state_dict()
    for (part, one), two in zip(weights(here).items(), weights(there).values(), strict=True):
        assert torch.equal(one, two), part


@pytest.mark.parametrize("kind", ["none", "inf", "huge"])
@pytest.mark.parametrize("on_error", ["raise", "neutral"])
def test_samples_without_a_number_are_counted_and_told_once(tiny, with_rewards, tmp_path, caplog, kind, on_error):
    recipe = tiny(f"rewards=[{{name: failing, share: 0.25, kind: {kind}, on_error: {on_error}}}]")
    with caplog.at_level(logging.WARNING):
        run.train(recipe, with_rewards, tmp_path / "run")
    last = [line for line in lines(tmp_path / "run") if "reward_failed/failing" in line][-1]
    assert last["reward_failed/failing"] == last["objective/failed_rewards"] == 0.25
    assert torch.isfinite(torch.tensor(last["reward/failing"]))
    assert [record.message for record in caplog.records if "failing" in record.message] == [
        "reward 'failing': NaN, None or beyond 1e15: on 25% of a batch's samples, which get advantage 0; counted as "
        "reward_failed/failing; logged once"
    ]


def test_a_reward_that_keeps_failing_ends_the_run(tiny, with_rewards, tmp_path):
    common = ("train.failed_rewards_window=6", "train.max_failed_rewards=0.4", "train.checkpoint_every=1")
    recipe = tiny(*common, "rewards=[{name: classifier}, {name: failing, share: 0.5}]")
    with pytest.raises(
        RunError, match=r"'failing' failed on 50% of the samples of the last 6 batches.*0\.4: NaN, None or beyond 1e15"
    ):
        run.train(recipe, with_rewards, tmp_path / "run")
    assert [path.name for path in checkpoint.available(tmp_path / "run" / "checkpoints")] == ["step-000001"]
    with pytest.raises(RunError, match=r"last 6 batches"):
        run.train(recipe, with_rewards, tmp_path / "again", resume=str(tmp_path / "run" / "checkpoints" / "step-000001"))
    assert [path.name for path in checkpoint.partials(tmp_path / "again" / "checkpoints")] == ["step-000001-partial"]
    never = tiny(*common[:1], "train.max_failed_rewards=1", "rewards=[{name: failing, kind: raises, on_error: neutral}]")
    run.train(never, with_rewards, tmp_path / "never")


def test_a_reward_that_always_fails_trains_like_dmd(tiny, with_rewards):
    amd = trained(tiny("rewards=[{name: failing, kind: raises, on_error: neutral}]"), with_rewards)
    dmd = trained(tiny(objective="dmd"), with_rewards)
    for (name, one), two in zip(weights(amd).items(), weights(dmd).values(), strict=True):
        assert torch.equal(one, two), name


def test_a_run_stopped_by_a_reward_goes_on_when_the_policy_changes(tiny, with_rewards, tmp_path, caplog):
    broken = tiny("rewards=[{name: failing, kind: raises}]")
    with pytest.raises(
        RunError, match="reward 'failing' failed: OSError: the server is gone\nMend it, or set on_error: neutral"
    ):
        run.train(broken, with_rewards, tmp_path / "run")
    assert "get advantage 0" not in caplog.text, "no sample gets one"
    run.train(tiny("rewards=[{name: failing, kind: raises, on_error: neutral}]"), with_rewards, tmp_path / "run", resume="auto")
    with pytest.raises(InputError, match=r"rewards\.0\.kind: raises -> none"):
        run.train(tiny("rewards=[{name: failing, on_error: neutral}]"), with_rewards, tmp_path / "run", resume="auto")


@pytest.mark.parametrize(("how", "equal"), [("normalize_then_sum", True), ("sum_then_normalize", False)])
def test_a_rewards_unit_matters_only_where_rewards_are_summed(tiny, with_rewards, how, equal):
    small, large = (
        trained(
            tiny(
                f"train.aggregation={how}",
                "objective.sharpening=2",
                f"rewards=[{{name: classifier}}, {{name: first, scale: {scale}}}]",
            ),
            with_rewards,
        )
        for scale in (1.0, 1000.0)
    )
    one, two = (torch.cat([v.flatten() for v in weights(trainer).values()]) for trainer in (small, large))
    assert torch.allclose(one, two, atol=2e-3) == equal


@pytest.mark.parametrize(("overrides", "unit"), [
    (("rewards=[{name: in_logits, weight: 3}]",), 1.5), (("rewards=[{name: first}]",), 0.0),
    (("rewards=[{name: in_logits}]", "train.aggregation=normalize_then_sum"), 0.0),
    (("rewards=[{name: in_logits}]", "objective.unit=0.25"), 0.25),
])  # fmt: skip
def test_the_objective_is_told_what_differences_of_rewards_mean(tiny, with_rewards, overrides, unit):
    assert Trainer(tiny(*overrides), with_rewards, Accelerator(cpu=True)).objective.unit == unit


def test_rewards_may_see_fewer_pixels(piped, plugins):
    shapes = []

    class Plugin:
        @hookimpl
        def distill_rewards(self):
            return {"shape": lambda: lambda media, prompts: (shapes.append(tuple(media.shape)), media.flatten(1).mean(1))[1]}

    plugins.register(Plugin())
    full = trained(piped("sdxl", "rewards=[{name: shape}]"), plugins, cycles=1)
    height, width = full.backbone.size[:2]
    half = f"model.reward_pixels=[{height // 2}, {width // 2}]"
    trained(piped("sdxl", "rewards=[{name: shape}]", half), plugins, cycles=1)
    assert {shape[2:] for shape in shapes} == {(height, width), (height // 2, width // 2)}
    with pytest.raises(InputError, match=r"model\.reward_pixels: must be multiples of"):
        trained(piped("sdxl", "rewards=[{name: shape}]", f"model.reward_pixels=[{height + 1}, {width}]"), plugins)
    shapes.clear()
    video = trained(piped("wan", "rewards=[{name: shape}]", "model.reward_pixels=[8, 8]"), plugins, cycles=1)
    assert {shape[2:] for shape in shapes} == {(video.backbone.size.frames, 8, 8)}


def test_rewards_are_built_before_a_teacher_is_trained_and_end_where_it_fails(tiny, with_rewards, monkeypatch):
    workers = []

    def no_teacher(*args, **options):
        workers.extend(multiprocessing.active_children())
        raise RunError("no teacher")

    monkeypatch.setattr(setup, "load_backbone", no_teacher)
    recipe = tiny('rewards=[{"name":"unbuildable"}]')
    with pytest.raises(InputError, match="no weights here"):
        Trainer(recipe, with_rewards, Accelerator(cpu=True))
    with pytest.raises(RunError, match="no teacher"):
        Trainer(tiny('rewards=[{"name":"first","pool":1}]'), with_rewards, Accelerator(cpu=True))
    assert workers and not any(worker.is_alive() for worker in workers)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("rewards.0.timeout=0", "rewards.0.timeout: must be greater than 0"),
        ("rewards.0.pool=-1", "rewards.0.pool: must be greater than or equal to 0"),
        ("rewards.0.device=gpu", "rewards.0.device: string should match pattern"),
        ("rewards.0.timeuot=3", "rewards.0.timeuot: unknown key. Did you mean 'timeout'?"),
        ("rewards.0.on_error=ignore", "rewards.0.on_error: must be 'raise' or 'neutral'"),
        ("rewards.0.weight=0", "rewards.0.weight: objective 'amd' needs a reward that counts"),
        ("train.aggregation=mean", "train.aggregation: must be 'sum_then_normalize' or 'normalize_then_sum'"),
        ("train.max_failed_rewards=0", "train.max_failed_rewards: must be greater than 0"),
        ("train.stop_on_hacking=true", "train.stop_on_hacking: needs at least four held-out evaluations"),
        ("model.reward_pixels=[8, 8]", "model.reward_pixels: is for a pipeline at model.path"),
    ],
)
def test_what_a_recipe_cannot_say(tiny, override, said):
    with pytest.raises(InputError) as caught:
        tiny(override)
    assert str(caught.value).startswith(f"--set {override}: {said}")


def test_every_new_key_is_described():
    for name, field in RewardConfig.model_fields.items():
        assert field.description, name


def test_ctrl_c_ends_a_run_and_its_workers_with_a_checkpoint(tmp_path):
    """Sent to the whole group, as a terminal does."""
    options = (*TINY, "train.max_steps=100000", "train.checkpoint_every=0", "rewards=[{name: random, pool: 1}]")
    command = [sys.executable, "-m", "amd_plugin.cli", "train", "modes2d", "--output", "run", *(f"--set={o}" for o in options)]
    log, metrics = tmp_path / "log.txt", tmp_path / "run" / "metrics.jsonl"
    with log.open("w") as file:
        process = subprocess.Popen(command, cwd=tmp_path, start_new_session=True, stderr=file, stdout=file)
    while not (metrics.exists() and metrics.read_text()):
        assert process.poll() is None, log.read_text()
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(60) == 130, log.read_text()
    assert "go on with: amd-plugin train --resume run" in log.read_text() and "Traceback" not in log.read_text()
    folder = tmp_path / "run" / "checkpoints"
    assert checkpoint.available(folder) + checkpoint.partials(folder)
    for _ in range(100):
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    raise AssertionError("a worker outlived the run by ten seconds")
