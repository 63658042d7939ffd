"""What must hold of any training loop: roles stay apart, nothing depends on how work is shared out, resuming is exact."""

import dataclasses

import pytest
import torch
from accelerate import Accelerator

from amd_plugin.errors import InputError, RunError
from amd_plugin.hookspecs import hookimpl
from amd_plugin.host import checkpoint, run
from amd_plugin.host.training.trainer import Trainer
from amd_plugin.models.family import pair
from amd_plugin.tasks import TASKS
from tests.helpers.training import assert_close, trained, weights


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("model.student_steps=3",),
        ("objective.guidance_scale=2.0",),
        ("objective.guidance_sigma=[0.02, 0.5]", "objective.guidance_scale=2.0"),
    ],
)
def test_each_loss_moves_only_its_own_role(tiny, plugins, overrides):
    trainer = trained(tiny, plugins, *overrides, cycles=1)
    teacher = [p.clone() for p in trainer.teacher.network.parameters()]
    before = weights(trainer)
    trainer.fake_score_turn(0)
    after = weights(trainer)
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"fake_score"}
    assert all(p.grad is None for p in trainer.student.parameters())
    trainer.student_turn()
    final = weights(trainer)
    moved = {name.split(".")[0] for name in before if not torch.equal(after[name], final[name])}
    assert moved == {"student"}
    assert all(p.grad is None for role in (trainer.fake_score, trainer.teacher) for p in role.network.parameters())
    assert all(torch.equal(a, b) for a, b in zip(teacher, trainer.teacher.network.parameters(), strict=True))


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("w", [1.0, 2.5])
def test_amd_switched_off_trains_like_dmd_to_the_bit(tiny, plugins, steps, w):
    common = (f"model.student_steps={steps}", f"objective.guidance_scale={w}")
    off = trained(tiny, plugins, *common, "objective.strength=0", "objective.sharpening=0")
    dmd = trained(tiny, plugins, *common, objective="dmd")
    assert off.rewards is None
    for (name, one), two in zip(weights(off).items(), weights(dmd).values(), strict=True):
        assert torch.equal(one, two), name


def test_equal_rewards_train_like_dmd_to_the_bit(tiny, plugins):
    class Constant:
        @hookimpl
        def distill_rewards(self):
            return {"constant": lambda: lambda media, prompts: torch.full((len(media),), 0.1)}

    plugins.register(Constant())
    amd = trained(tiny, plugins, "rewards=[{name: constant}]")
    dmd = trained(tiny, plugins, objective="dmd")
    for (name, one), two in zip(weights(amd).items(), weights(dmd).values(), strict=True):
        assert torch.equal(one, two), name


@pytest.mark.parametrize(("objective", "options"), [("dmd", ()), ("amd", ()), ("amd", ("objective.kl=0.5",))])
def test_one_batch_of_sixteen_equals_eight_of_two(tiny, plugins, objective, options):
    """Groups of four span micro-batches here: rewards are joined before any gradient is taken."""
    whole = trained(tiny, plugins, *options, objective=objective, cycles=2)
    parts = trained(tiny, plugins, *options, "train.accumulation=8", objective=objective, cycles=2)
    assert_close(weights(whole), weights(parts), 2e-5)


@pytest.mark.parametrize(
    ("objective", "options"),
    [("dmd", ()), ("amd", ()), ("amd", ("objective.kl=0.5",)), ("decoupled_dmd", ()), ("policy_gradient", ())],
)
def test_resumed_equals_straight_to_the_bit(tiny, plugins, tmp_path, objective, options):
    recipe = tiny(
        *options,
        "model.student_steps=2",
        "train.max_steps=5",
        "train.checkpoint_every=2",
        "train.keep_checkpoints=9",
        objective=objective,
    )
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    once = run.train(recipe, plugins, straight)
    again = run.train(recipe, plugins, resumed, resume=str(straight / "checkpoints" / "step-000002"))
    assert once == again
    for part in ("student", "fake_score", "ema", "optimizer_student", "optimizer_fake_score"):
        one, two = ((d / "checkpoints" / "step-000005" / f"{part}.safetensors").read_bytes() for d in (straight, resumed))
        assert one == two, part
    assert (straight / "metrics.jsonl").read_text().splitlines()[-1] == (resumed / "metrics.jsonl").read_text().splitlines()[-1]


def test_a_warm_start_of_the_fake_score_moves_nothing_else_and_happens_once(tiny, plugins):
    trainer = Trainer(tiny("train.fake_warmup=5", "train.fake_updates=2"), plugins, Accelerator(cpu=True))
    before, turns, students, noise = weights(trainer), [], [], []
    fake_turn, student_turn, for_fake_score = trainer.fake_score_turn, trainer.student_turn, trainer.rollouts.for_fake_score

    def scored(*arguments):
        samples = for_fake_score(*arguments)
        noise.append(samples[0].normal("noise").sum().item())
        return samples

    trainer.rollouts.for_fake_score = scored
    trainer.fake_score_turn = lambda *arguments: (turns.append(arguments), fake_turn(*arguments))[1]
    trainer.student_turn = lambda *arguments: (students.append(weights(trainer)), student_turn(*arguments))[1]
    trainer.cycle(), trainer.cycle()
    assert turns == [(0, 0), (0, 1), (0, 2), (0, 3), (0, 4), (0,), (1,), (0,), (1,)]
    assert len(set(noise)) == len(turns), "each update has random numbers of its own"
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], students[0][name])}
    assert moved == {"fake_score"}


def test_a_fixed_batch_gives_the_same_signals_one_by_one(tiny, plugins):
    """Batched cond + uncond equals two calls."""
    trainer = trained(tiny, plugins, "objective.guidance_scale=2.0", cycles=0)
    x, t, labels = torch.randn(6, 2), torch.rand(6) * 1000, torch.arange(6) % trainer.task.num_classes
    cond, uncond = trainer.backbone.conditions(labels, None), trainer.backbone.conditions.uncond(labels)
    both = pair(trainer.forward.caller, trainer.teacher, x, t, cond, uncond)
    torch.testing.assert_close(both[0], trainer.forward.caller.call(trainer.teacher, x, t, cond))
    torch.testing.assert_close(both[1], trainer.forward.caller.call(trainer.teacher, x, t, uncond))


def test_training_does_not_touch_the_global_generator(tiny, plugins):
    trainer = trained(tiny, plugins, cycles=1)
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    trainer.cycle()
    assert torch.equal(before, torch.random.get_rng_state())


def test_rollouts_visit_the_exported_rungs(tiny, plugins):
    trainer = trained(tiny, plugins, "model.student_steps=3", cycles=0)
    visited = set()
    trainer.student.network.register_forward_pre_hook(
        lambda module, args, kwargs: visited.update(kwargs["timestep"].tolist()), with_kwargs=True
    )
    for _ in range(6):
        trainer.cycle()
    assert visited == set(trainer.forward.ladder.timesteps.tolist())


def test_a_reward_that_is_nan_for_some_is_counted(tiny, plugins, tmp_path):
    class Flaky:
        @hookimpl
        def distill_rewards(self):
            def reward(media, prompts):
                return [None if index % 4 == 0 else float(value) for index, value in enumerate(media[:, 0])]

            return {"flaky": lambda: reward}

    plugins.register(Flaky())
    trainer = trained(tiny, plugins, "rewards=[{name: flaky}]", cycles=2)
    assert trainer.objective.state_dict()["failed"] == 2 * 4 * 4
    assert all(torch.isfinite(value).all() for value in weights(trainer).values())


@pytest.mark.parametrize(
    ("reward", "said"),
    [
        (lambda media, prompts: 1 / 0, "ZeroDivisionError"),
        (lambda media, prompts: torch.zeros(len(media), 2), "one value per sample"),
        (lambda media, prompts: [1.0], "one value per sample"),
    ],
)
def test_a_reward_that_breaks_stops_the_run_with_a_checkpoint(tiny, plugins, tmp_path, reward, said):
    class Broken:
        calls = 0

        @hookimpl
        def distill_rewards(self):
            def counted(media, prompts):
                Broken.calls += 1
                return reward(media, prompts) if Broken.calls > 9 else torch.zeros(len(media))

            return {"broken": lambda: counted}

    plugins.register(Broken())
    recipe = tiny("rewards=[{name: broken}]")
    with pytest.raises(RunError, match=said):
        run.train(recipe, plugins, tmp_path / "run")
    # It broke in the middle of a step: what was saved says so, and is no checkpoint between steps.
    saved = checkpoint.partials(tmp_path / "run" / "checkpoints")
    assert [path.name for path in saved] == ["step-000002-partial"]
    assert checkpoint.available(tmp_path / "run" / "checkpoints") == []

    Broken.calls = 0
    neutral = tiny("rewards=[{name: broken, on_error: neutral}]")
    run.train(neutral, plugins, tmp_path / "neutral")
    last = [line for line in (tmp_path / "neutral" / "metrics.jsonl").read_text().splitlines() if "failed_rewards" in line][-1]
    assert '"objective/failed_rewards": 1.0' in last


def test_an_evaluation_that_breaks_stops_the_run_with_a_checkpoint(tiny, plugins, tmp_path, monkeypatch):
    recipe = tiny("train.evaluate_every=2")
    monkeypatch.setattr(TASKS["modes2d"], "evaluate", lambda self, media, labels, samples: 1 / 0)
    with pytest.raises(RunError, match="the held-out evaluation failed: ZeroDivisionError"):
        run.train(recipe, plugins, tmp_path / "run")
    assert [path.name for path in checkpoint.available(tmp_path / "run" / "checkpoints")] == ["step-000002"]


def test_a_gradient_that_is_not_finite_stops_before_it_is_applied(tiny, plugins, tmp_path):
    trainer = trained(tiny, plugins, cycles=1)
    with torch.no_grad():
        next(trainer.teacher.network.parameters()).fill_(float("nan"))
    before = weights(trainer)
    with pytest.raises(RunError, match=r"first that is not: weights \(teacher: "):
        trainer.student_turn()
    assert all(torch.equal(before[name], value) for name, value in weights(trainer).items())


def test_processes_that_cannot_share_the_batch(tiny, plugins):
    recipe = tiny()
    recipe = dataclasses.replace(
        recipe, config=recipe.config.model_copy(update={"train": recipe.config.train.model_copy(update={"accumulation": 5})})
    )
    with pytest.raises(InputError, match="multiple of processes x accumulation"):
        Trainer(recipe, plugins, Accelerator(cpu=True))


def test_with_a_budget_in_nats_the_scale_of_the_reward_does_not_matter_to_the_bit(tiny, plugins):
    """A power of two, so that nothing is rounded."""
    one, two = (
        weights(trained(tiny, plugins, "objective.kl=0.2", f"rewards=[{{name: classifier, weight: {weight}}}]", cycles=3))
        for weight in (1.0, 8.0)
    )
    assert all(torch.equal(one[name], two[name]) for name in one)
