"""The fake score conditioned on the outcome of each sample: on every class of networks, and nowhere but in the fake score."""

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

import amd_plugin
from amd_plugin.errors import InputError
from amd_plugin.host import run
from amd_plugin.host.training.trainer import Trainer
from amd_plugin.maths.advantage_guidance import BAD, GOOD, NONE
from amd_plugin.models.families.sd3 import SD3
from amd_plugin.models.step_conditioning import OUTCOME, RUNG_LR, RUNGS, tables_of
from amd_plugin.plan.planner import plan
from tests.helpers.pipelines import BUILD
from tests.helpers.training import weights

MADE_HERE = {"mlp": ("modes2d", "model.depth=2"), "dit made here": ("digits", "model.depth=2", "model.network=dit")}
GUIDED, PLAIN = "objective.advantage_guidance=2", "objective.advantage_guidance=0"
SHARED, LORA = ("model.roles=shared_base",), ("model.roles=separate", "model.fake_score=lora")


@pytest.fixture
def trainer_of(tiny, piped, plugins):
    """``trainer_of("wan", "a.b=c", ...)``: of a pipeline on disk, or of a network made here."""

    def make(family, *overrides):
        if family in MADE_HERE:
            name, *model = MADE_HERE[family]
            recipe = tiny(*model, *overrides, name=name)
        else:
            recipe = piped(family, *overrides, objective="amd")
        return Trainer(recipe, plugins, Accelerator(cpu=True))

    return make


def tables_in(trainer):
    return [table.table for table in tables_of(trainer.fake_score.network, OUTCOME).tables]


def fill(trainer, row):
    draws = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for table in tables_in(trainer):
            table[row] = torch.randn(table.shape[1], generator=draws)


def caller_of(trainer, batch=3):
    """``call(role, outcome)``: the output of a role, always for the same noisy samples."""
    labels = torch.arange(batch) % (trainer.task.num_classes or batch)
    x = torch.randn((batch, *trainer.backbone.sample_shape), generator=torch.Generator().manual_seed(3))
    timestep, condition = torch.tensor([700, 200, 400])[:batch], trainer.forward.condition(labels)

    def call(role, outcome=NONE):
        role.outcome = outcome
        return trainer.forward.caller.call(role, x, timestep, condition)

    return call


@pytest.mark.parametrize("family", [*BUILD, *MADE_HERE])
@pytest.mark.parametrize("how", [("model.roles=separate",), SHARED, LORA], ids=["separate", "shared", "lora"])
def test_each_sample_has_its_own_row_and_no_other_role_has_one(family, how, trainer_of):
    if family in MADE_HERE and how != ("model.roles=separate",):
        how = (*how, f"model.lora.target_modules=[{'modulate' if family == 'mlp' else 'to_q'}]")
    guided, plain = trainer_of(family, *how, GUIDED), trainer_of(family, *how, PLAIN)
    call = caller_of(guided)
    with torch.no_grad():
        expected = caller_of(plain)(plain.fake_score)
        assert tables_of(plain.fake_score.network, OUTCOME) is None
        assert all(torch.equal(call(guided.fake_score, outcome), expected) for outcome in (NONE, BAD, GOOD))
        fill(guided, BAD)
        mixed = call(guided.fake_score, torch.tensor([NONE, BAD, GOOD]))
        whole = call(guided.fake_score, BAD)
        assert torch.equal(mixed[0], expected[0]) and torch.equal(mixed[2], expected[2])
        torch.testing.assert_close(mixed[1], whole[1])
        assert not torch.equal(mixed[1], expected[1])
        assert torch.equal(call(guided.fake_score, NONE), expected)
        call(guided.fake_score, BAD)
        assert all(torch.equal(call(role, NONE), expected) for role in (guided.student, guided.teacher))
    call(guided.fake_score, torch.tensor([NONE, BAD, GOOD])).square().sum().backward()
    for table in tables_in(guided):
        assert [bool(row.any()) for row in table.grad] == [False, True, True], "the row of no outcome stays zero"


def test_a_constant_reward_trains_like_dmd_to_the_bit(tiny, plugins, tmp_path):
    constant = "rewards=[{name: constant}]"
    manager = amd_plugin.get_plugin_manager()

    class Constant:
        @amd_plugin.hookimpl
        def distill_rewards(self):
            return {"constant": lambda: lambda media, prompts: torch.full((len(media),), 0.1)}

    manager.register(Constant(), "constant")
    trained = {}
    for objective, settings in (("dmd", ()), ("amd", (constant, GUIDED, "objective.sharpening=0", "objective.strength=0"))):
        trainer = Trainer(tiny(*settings, objective=objective, manager=manager), manager, Accelerator(cpu=True))
        for _ in range(3):
            trainer.cycle()
        trained[objective] = {name: value for name, value in weights(trainer).items() if OUTCOME not in name}
    assert trained["dmd"].keys() == trained["amd"].keys()
    for name, value in trained["dmd"].items():
        assert torch.equal(value, trained["amd"][name]), name


def test_the_fake_score_is_trained_with_outcomes_and_the_student_gets_the_contrast(tiny, plugins):
    trainer = Trainer(tiny(GUIDED, "train.log_every=1", "objective.tolerance=0"), plugins, Accelerator(cpu=True))
    (table,) = tables_in(trainer)
    metrics = [trainer.cycle() for _ in range(4)]
    assert not table[NONE].any() and table[BAD].any() and table[GOOD].any()
    assert trainer.fake_score.outcome == NONE, "no outcome is left for the next call"
    assert metrics[-1]["objective/advantage_guidance"] == 2
    assert metrics[-1]["objective/contrast_ratio"] > 0
    assert trainer.student.outcome is None and trainer.teacher.outcome is None


@pytest.mark.parametrize(
    "option",
    ["gan_weight=0.1", "guidance_sigma=[0.3,0.9]", "match_sigma=[0.1,0.8]", "guidance_window=[0,0.5]", "sharpening=1", "strength=0.5"],
)  # fmt: skip
def test_it_goes_with_every_other_mechanism(option, tiny, plugins):
    settings = (GUIDED, f"objective.{option}", "objective.tolerance=0", "train.log_every=1")
    if option.startswith("gan"):
        settings += ("train.real=teacher",)
    trainer = Trainer(tiny(*settings), plugins, Accelerator(cpu=True))
    metrics = [trainer.cycle() for _ in range(3)][-1]
    assert metrics["objective/contrast_ratio"] > 0 and trainer.fake_score.outcome == NONE
    losses = [value for name, value in metrics.items() if name.startswith("loss/") and name.count("/") == 1]
    assert losses and all(torch.isfinite(value) for value in losses)


def test_tables_have_a_learning_rate_of_their_own(tiny, plugins):
    """Adam's first update has the length of the learning rate in every element with a gradient."""
    for rate, fake_lr in ((1e-3, 2e-3), (5e-2, 2e-3), (1e-3, 1e-5)):
        how = (GUIDED, "model.student_steps=2", f"train.outcome_lr={rate}", "train.warmup_steps=0", "train.clip_norm=1e9",
               f"train.fake_lr={fake_lr}")  # fmt: skip
        trainer = Trainer(tiny(*how, "objective.tolerance=0"), plugins, Accelerator(cpu=True))
        network = {n: p.clone() for n, p in trainer.fake_score.named_parameters().items()}
        trainer.fake_score_turn(0)
        for part, expected in ((OUTCOME, rate), (RUNGS, max(fake_lr, RUNG_LR))):
            (table,) = tables_of(trainer.fake_score.network, part).tables
            assert table.table.abs().max().item() == pytest.approx(expected, rel=1e-2)
        moved = max(
            (p - network[n]).abs().max().item() for n, p in trainer.fake_score.named_parameters().items() if ".table" not in n
        )
        assert moved == pytest.approx(fake_lr, rel=1e-2)


@pytest.mark.parametrize("family", ["dit", "sdxl", "wan", "sd3"])
@pytest.mark.parametrize("how", [("model.roles=separate",), SHARED], ids=["separate", "shared"])
def test_recomputed_activations_have_the_rows_too(family, how, trainer_of):
    trained = []
    for flag in ("false", "true"):
        trainer = trainer_of(
            family, *how, GUIDED, f"train.gradient_checkpointing={flag}", "train.accumulation=2", "train.fake_lr=1.0"
        )
        fill(trainer, GOOD)
        fill(trainer, BAD)
        trainer.fake_score_turn(0)
        trained.append([p.detach().clone() for p in trainer.fake_score.parameters()])
    for kept, recomputed in zip(*trained, strict=True):
        torch.testing.assert_close(kept, recomputed, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("how", [("model.roles=separate",), SHARED], ids=["separate", "shared"])
@pytest.mark.parametrize("family", ["mlp", "sd3"])
def test_resumed_equals_straight_to_the_bit(family, how, trainer_of, plugins, tmp_path):
    how = (*how, "model.lora.target_modules=[modulate]") if family == "mlp" else how
    how = (*how, "objective.advantage_guidance=auto", "objective.tolerance=0", "model.student_steps=2")
    recipe = trainer_of(family, *how, "train.max_steps=3", "train.checkpoint_every=1", "train.keep_checkpoints=9").recipe
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    run.train(recipe, plugins, straight)
    run.train(recipe, plugins, resumed, resume=str(straight / "checkpoints" / "step-000001"))
    last = "checkpoints/step-000003"
    saved = load_file(straight / last / "fake_score.safetensors")
    assert all(value.any() for name, value in saved.items() if OUTCOME in name)
    for part in ("student", "fake_score", "ema", "optimizer_student", "optimizer_fake_score"):
        assert (straight / last / f"{part}.safetensors").read_bytes() == (
            resumed / last / f"{part}.safetensors"
        ).read_bytes(), part
    for folder in (straight / "checkpoints", straight / "student"):
        names = [name for file in folder.rglob("*.safetensors") if "fake_score" not in file.name for name in load_file(file)]
        assert names and not [name for name in names if OUTCOME in name], "only the fake score has tables"


def test_a_checkpoint_without_outcomes_goes_on_without(tiny, plugins, tmp_path):
    run.train(tiny(PLAIN, "train.max_steps=2"), plugins, tmp_path / "old")
    at = str(tmp_path / "old" / "checkpoints" / "step-000002")
    with pytest.raises(InputError, match=r"objective.advantage_guidance"):
        run.train(tiny(GUIDED, "train.max_steps=3"), plugins, tmp_path / "new", resume=at)
    assert not (tmp_path / "new").exists()


def test_a_family_without_time_embeddings_is_refused(piped, plugins, monkeypatch):
    monkeypatch.delattr(SD3, "time_embeddings")
    with pytest.raises(
        InputError, match=r"objective.advantage_guidance: the family of StableDiffusion3Pipeline does not say where"
    ):
        Trainer(piped("sd3", GUIDED, objective="amd"), plugins, Accelerator(cpu=True))


def test_a_scale_that_sets_itself_plans_what_it_trains(piped, plugins, monkeypatch):
    """Without a place for the table training goes on without it, and so does the plan."""
    recipe = piped("sd3", "objective.advantage_guidance=auto", objective="amd")
    with_table = plan(recipe, plugins, 1, 80e9)
    monkeypatch.delattr(SD3, "time_embeddings")
    without = plan(piped("sd3", "objective.advantage_guidance=auto", objective="amd"), plugins, 1, 80e9)
    plain = plan(piped("sd3", PLAIN, objective="amd"), plugins, 1, 80e9)
    assert without.flops == plain.flops != with_table.flops
    assert without.rows["fake_score"].weights < with_table.rows["fake_score"].weights


def test_a_harvest_without_other_samples_is_refused(tiny):
    """With one step and one set the student's turn would have the samples whose outcomes the fake score has just learned."""
    with pytest.raises(InputError, match=r"train.rollout_sets: .* set 2, or train.rollouts: fresh, got 1"):
        tiny(GUIDED, "train.rollouts=harvest")
    tiny(GUIDED, "train.rollouts=harvest", "train.rollout_sets=2")
    tiny(GUIDED, "train.rollouts=harvest", "model.student_steps=2")
    tiny(PLAIN, "train.rollouts=harvest")


@pytest.mark.parametrize("scale", [0, 2])
def test_remembered_failures_are_as_many_of_the_samples_without_an_outcome(tiny, plugins, monkeypatch, scale):
    """A third of a turn's own samples is without an outcome. Remembered ones all are, so that each counts a third."""
    recipe = tiny(f"objective.advantage_guidance={scale}", "objective.sharpening=0", "objective.memory_share=0.5")
    trainer, counted, outcomes = Trainer(recipe, plugins, Accelerator(cpu=True)), [], []
    loss = trainer.objective.fake_score_loss

    def watched(prediction, target, weight):
        counted.append(weight)
        outcomes.append(trainer.fake_score.outcome)
        return loss(prediction, target, weight)

    monkeypatch.setattr(trainer.objective, "fake_score_loss", watched)
    for _ in range(3):
        trainer.cycle(1.0)
    weight = torch.cat(counted)
    if not scale:
        assert (weight == 1).all()
        return
    assert {round(float(value), 4) for value in weight.unique()} == {0.3333, 1.0}
    assert (torch.cat(outcomes)[weight < 1] == NONE).all()


def test_schedules_of_plugins_multiply(tiny):
    manager, seen = amd_plugin.get_plugin_manager(), []

    class Half:
        @amd_plugin.hookimpl
        def distill_advantage_schedule(self, sigma, step, max_steps):
            seen.append((sigma.shape, step, max_steps))
            return torch.full_like(sigma, 0.5)

    class LowNoise:
        @amd_plugin.hookimpl
        def distill_advantage_schedule(self, sigma):
            return (sigma < 0.5).float()

    for plugin in (Half(), LowNoise()):
        manager.register(plugin, type(plugin).__name__)
    trainer = Trainer(tiny(GUIDED, manager=manager), manager, Accelerator(cpu=True))
    factors, original = [], trainer.objective.student_loss

    def record(signals):
        factors.append((signals.sigma, signals.advantage_factor))
        return original(signals)

    trainer.objective.student_loss = record
    trainer.cycle()
    sigma, factor = (torch.cat(parts) for parts in zip(*factors, strict=True))
    assert torch.equal(factor, 0.5 * (sigma < 0.5).float())
    assert seen == [(sigma.shape, 0, trainer.train.max_steps)]


def test_a_plan_counts_tables_and_calls(tiny, plugins):
    from amd_plugin.plan import plan

    guided, plain = (plan(tiny(flag), plugins, 1, 80_000_000_000) for flag in (GUIDED, PLAIN))
    assert guided.rows["fake_score"].weights - plain.rows["fake_score"].weights == 4 * 3 * 16
    assert guided.rows["student"] == plain.rows["student"] and guided.rows["teacher"] == plain.rows["teacher"]
    assert guided.flops["fake_score"] > plain.flops["fake_score"]
