"""What the reference host does for options that need more than the objective: memory, reuse, gradients, windows."""

import json
import logging

import pytest
import torch
from accelerate import Accelerator

from amd_plugin.config import TrainConfig
from amd_plugin.errors import InputError
from amd_plugin.hookspecs import hookimpl
from amd_plugin.host import run
from amd_plugin.host.training.batch import Batch, BatchSource
from amd_plugin.host.training.failure_memory import BatchFailures
from amd_plugin.host.training.trainer import Trainer
from amd_plugin.tasks import TASKS
from tests.helpers.training import assert_close, trained, weights

OPTIONS = {
    "memory": ("objective.memory_share=0.5",),
    "harvest": ("train.rollouts=harvest", "objective.memory_share=0.25"),
    "two sets": ("train.rollouts=harvest", "train.rollout_sets=2"),
    "sharpening window": ("objective.sharpening_sigma=[0, 0.5]",),
    "gradient": ("objective.reward_gradient=0.25",),
    "gradient at failing samples": ("objective.advantage_gradient=0.3",),
    "guidance window": ("objective.guidance_scale=2", "objective.guidance_window=[0, 0.5]"),
}


@pytest.mark.parametrize("option", OPTIONS)
def test_resumed_equals_straight_to_the_bit(tiny, plugins, tmp_path, option):
    recipe = tiny("model.student_steps=2", "train.max_steps=5", "train.checkpoint_every=2", "train.keep_checkpoints=9",
                  *OPTIONS[option])  # fmt: skip
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    assert run.train(recipe, plugins, straight) == run.train(
        recipe, plugins, resumed, resume=str(straight / "checkpoints" / "step-000002")
    )
    files = sorted(path.name for path in (straight / "checkpoints" / "step-000005").glob("*.safetensors"))
    assert ("memory.safetensors" in files) == (option in ("memory", "harvest"))
    for name in files:
        one, two = ((folder / "checkpoints" / "step-000005" / name).read_bytes() for folder in (straight, resumed))
        assert one == two, name


@pytest.mark.parametrize("option", ["memory", "harvest", "sharpening window", "gradient at failing samples"])
def test_one_batch_of_sixteen_equals_eight_of_two(tiny, plugins, option):
    whole = trained(tiny, plugins, *OPTIONS[option], cycles=2)
    parts = trained(tiny, plugins, "train.accumulation=8", *OPTIONS[option], cycles=2)
    assert_close(weights(whole), weights(parts), 5e-5)


def batch_of(turn, step=0, size=16):
    train = TrainConfig(max_steps=1, batch_size=size, group_size=4, student_lr=1e-3, fake_lr=1e-3)
    return Batch(BatchSource(train, TASKS["modes2d"](), (2,), 1, torch.device("cpu")), step, turn, 0)


def test_memory_keeps_the_latest_of_the_worst_and_shows_a_share_of_them(monkeypatch):
    monkeypatch.setattr("amd_plugin.objectives.failure_memory.SIZE", 3)
    memory, rows = BatchFailures(share=0.5), slice(0, 16)
    x0 = torch.arange(32.0).reshape(16, 2)
    first = batch_of("a")
    assert memory.recall(first, rows, x0, first.labels)[0] is x0, "there is nothing to remember yet"
    advantage = torch.zeros(16)
    memory.add(first, x0, advantage)
    assert not memory.recall(first, rows, x0, first.labels)[2].any(), "samples that did as well as others are no failures"
    advantage[[3, 9]] = torch.tensor([-1.0, -0.5])
    for shift in (0.0, 100.0):
        memory.add(first, x0 + shift, advantage)
    kept = memory.state_dict()["0"]
    assert kept["samples"][:, 0].tolist() == [18.0, 106.0, 118.0]
    shown = replaced = 0
    for index in range(50):
        batch = batch_of("b", index)
        samples, labels, remembered = memory.recall(batch, rows, x0, batch.labels)
        assert torch.equal(samples[~remembered], x0[~remembered]) and torch.equal(
            labels[~remembered], batch.labels[~remembered]
        )
        assert set(samples[remembered][:, 0].tolist()) <= {18.0, 106.0, 118.0}
        shown, replaced = shown + 16, replaced + int(remembered.sum())
    assert 0.45 < replaced / shown < 0.55


def test_a_reward_without_gradient_is_refused_before_anything_runs(tiny, plugins, tmp_path):
    with pytest.raises(InputError, match="'random' says of itself that it is not differentiable"):
        Trainer(tiny("objective.reward_gradient=0.25", "rewards=[{name: random}]"), plugins, Accelerator(cpu=True))
    with pytest.raises(InputError, match="pool"):
        Trainer(tiny("objective.reward_gradient=0.25", "rewards=[{name: classifier, pool: 1}]"), plugins, Accelerator(cpu=True))


def test_a_gradient_is_followed_where_all_rewards_that_count_have_one(tiny, plugins, caplog):
    random, auto = "rewards=[{name: random}]", "objective.advantage_gradient=auto"
    with pytest.raises(InputError, match=r"objective\.advantage_gradient: needs rewards with gradients, and 'random'"):
        Trainer(tiny("objective.advantage_gradient=0.3", random), plugins, Accelerator(cpu=True))
    with caplog.at_level(logging.INFO):
        blind, plain = (weights(trained(tiny, plugins, random, *more, cycles=2)) for more in ((auto,), ()))
    assert "advantage_gradient: auto is 0 in this run, as 'random'" in caplog.text
    assert_close(blind, plain, 0)
    mixed = "rewards=[{name: classifier}, {name: random, weight: 0}]"
    assert "objective/reward_gradient_ratio" in trained(tiny, plugins, mixed, auto, cycles=1).cycle()
    normalised = "train.aggregation=normalize_then_sum"
    with caplog.at_level(logging.INFO):
        assert "objective/reward_gradient_ratio" not in trained(tiny, plugins, auto, normalised, cycles=1).cycle()
    assert "as train.aggregation normalises each reward by itself" in caplog.text


def test_plain_dmd_follows_a_reward_gradient(tiny, plugins):
    """The reward rises by its own gradient, in the baseline too."""
    common = ("train.batch_size=32", "objective.guidance_scale=1")
    means = {}
    for weight in (0.0, 2.0):
        trainer = trained(tiny, plugins, *common, f"objective.reward_gradient={weight}", objective="dmd", cycles=25)
        assert (trainer.scoring is None) == (weight == 0)
        labels = trainer.task.balanced_labels(160)
        means[weight] = (
            trainer.task.classifier()(trainer.sample(labels, "look")).log_softmax(1).gather(1, labels[:, None]).mean()
        )
    assert means[2.0] > means[0.0] + 0.1


def test_a_gradient_that_breaks_costs_its_step_only(tiny, plugins):
    class Fickle:
        @hookimpl
        def distill_rewards(self):
            def reward(media, prompts):
                if media.requires_grad:
                    raise RuntimeError("no gradients today")
                return media[:, 0]

            reward.differentiable = True
            return {"fickle": lambda: reward}

    plugins.register(Fickle())
    common = ("rewards=[{name: fickle}]",)
    broken = trained(tiny, plugins, *common, "objective.reward_gradient=0.25")
    without = trained(tiny, plugins, *common)
    assert_close(weights(broken), weights(without), 0.0)


def test_a_sample_without_a_gradient_costs_itself_only(tiny, plugins):
    class Rooted:
        @hookimpl
        def distill_rewards(self):
            def reward(media, prompts):
                rows = list(media[:, 0])
                rows[1] = (0 * rows[1]).sqrt()  # a score of 0, whose gradient is 0 / 0
                return torch.stack(rows)

            reward.differentiable = True
            return {"rooted": lambda: reward}

    plugins.register(Rooted())
    common = ("rewards=[{name: rooted}]", "objective.reward_gradient=0.25")
    trainer = trained(tiny, plugins, *common)
    assert all(torch.isfinite(value).all() for value in weights(trainer).values())
    batch, x0 = trainer.rollouts.batch(trainer.step, "student", 0), torch.randn(6, 2, requires_grad=True)
    reward = trainer.scoring.with_gradient(batch, slice(0, 6), x0)
    [slope] = torch.autograd.grad(reward.nan_to_num(0).sum(), x0)
    assert reward.isnan().tolist() == [False, True, False, False, False, False]
    assert slope[:, 0].tolist() == [1, 0, 1, 1, 1, 1] and not slope[:, 1].any()


@pytest.mark.parametrize("how", ["nowhere", "unused"])
def test_a_reward_without_any_gradient_is_told(tiny, plugins, caplog, how):
    class Gone:
        @hookimpl
        def distill_rewards(self):
            own = torch.zeros((), requires_grad=True)

            def reward(media, prompts):
                if how == "unused":  # a graph that does not lead to the media
                    return media[:, 0].detach() + own
                return (0 * media[:, 0]).sqrt() + media[:, 0].detach()

            reward.differentiable = True
            return {"gone": lambda: reward}

    plugins.register(Gone())
    with caplog.at_level(logging.WARNING):
        trainer = trained(tiny, plugins, "rewards=[{name: gone}]", "objective.reward_gradient=0.25")
    assert "reward_gradient" in caplog.text and "100%" in caplog.text
    assert trainer.cycle()["objective/failed_gradients"] == 1


def test_static_weights_are_those_of_the_whole_batch(tiny, plugins):
    static = ("objective.static=true", "objective.strength=0.5", "objective.guidance_scale=2", "objective.sharpening=0")
    whole, parts = (trained(tiny, plugins, *static, f"train.accumulation={n}") for n in (1, 8))
    assert_close(weights(whole), weights(parts), 1e-5)


def test_few_samples_per_prompt_are_warned_about(tiny, plugins, caplog):
    with caplog.at_level(logging.WARNING):
        trained(tiny, plugins, "train.group_size=4", cycles=0)
    assert "group_size" not in caplog.text
    with caplog.at_level(logging.WARNING):
        trained(tiny, plugins, "train.group_size=2", cycles=0)
    assert "train.group_size: with fewer than 4" in caplog.text


def test_the_log_has_zones_by_rung_and_level(tiny, plugins, tmp_path):
    run.train(tiny("model.student_steps=2", "train.max_steps=6"), plugins, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    names = {name for line in lines for name in line}
    assert {"objective/zone_share/rung 0", "objective/zone_share/rung 1", "objective/zone_share/low", "loss/fake_score/high",
            "objective/tilt_ratio", "objective/coherence_outside/high"} <= names  # fmt: skip


@pytest.mark.parametrize("window", ["objective.sharpening_sigma=[0.5, 1.5]", "objective.guidance_window=[0, 2]"])
def test_windows_are_fractions_of_the_schedule(tiny, window):
    with pytest.raises(InputError, match="fractions of the schedule"):
        tiny(window)
