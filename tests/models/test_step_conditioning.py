"""The fake score is told the exit rung: on every class, in every way of sharing weights, and nobody else hears of it."""

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from amd_plugin.errors import InputError
from amd_plugin.host import run
from amd_plugin.host.training.forward import Exit, Forward
from amd_plugin.host.training.rollouts import Rollouts
from amd_plugin.host.training.trainer import Trainer
from amd_plugin.models.families.sd3 import SD3
from amd_plugin.models.step_conditioning import RUNGS, tables_of
from tests.helpers.pipelines import BUILD

MADE_HERE = {"mlp": ("modes2d", "model.depth=2"), "dit made here": ("digits", "model.depth=2", "model.network=dit")}
ON, OFF = "model.rung_conditioning=true", "model.rung_conditioning=false"
SHARED, LORA = ("model.roles=shared_base",), ("model.roles=separate", "model.fake_score=lora")


@pytest.fixture
def trainer_of(tiny, piped, plugins):
    """``trainer_of("wan", "a.b=c", ...)``, four steps: of a pipeline on disk, or of a network made here."""

    def make(family, *overrides, objective="dmd"):
        if family in MADE_HERE:
            name, *model = MADE_HERE[family]
            recipe = tiny("model.student_steps=4", *model, *overrides, name=name, objective=objective)
        else:
            recipe = piped(family, *overrides, objective=objective)
        return Trainer(recipe, plugins, Accelerator(cpu=True))

    return make


def rows_of(trainer):
    tables = tables_of(trainer.fake_score.network, RUNGS)
    return [table.table for table in tables.tables]


def fill(trainer, rung, value=None):
    """A row that is not zero, in every table."""
    draws = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for table in rows_of(trainer):
            table[rung] = torch.randn(table.shape[1], generator=draws) if value is None else value


def asker(trainer):
    """``ask(role, rung)``: what a role says, always about the same noisy samples."""
    labels = torch.arange(2) % (trainer.task.num_classes or 2)
    draws = torch.Generator().manual_seed(3)
    x = torch.randn((2, *trainer.backbone.sample_shape), generator=draws)
    timestep, condition = torch.tensor([700, 200]), trainer.forward.condition(labels)

    def ask(role, rung=None):
        if rung is not None:
            role.rung = rung
        return trainer.forward.caller.call(role, x, timestep, condition)

    return ask


def one_turn(trainer):
    trainer.fake_score_turn(0)
    return trainer.rollouts.batch(trainer.step, "fake score", 0).exit_rung


@pytest.mark.parametrize("family", [*BUILD, *MADE_HERE])
@pytest.mark.parametrize("how", [("model.roles=separate",), SHARED, LORA], ids=["separate", "shared", "lora"])
def test_a_row_changes_its_rung_and_nothing_else(family, how, trainer_of):
    if family in MADE_HERE and how != ("model.roles=separate",):
        how = (*how, f"model.lora.target_modules=[{'modulate' if family == 'mlp' else 'to_q'}]")
    told, untold = trainer_of(family, *how, ON), trainer_of(family, *how, OFF)
    ask = asker(told)
    with torch.no_grad():
        plain = asker(untold)(untold.fake_score)
        assert tables_of(untold.fake_score.network, RUNGS) is None
        assert all(torch.equal(ask(told.fake_score, rung), plain) for rung in range(4)), "zeros change no bit"
        fill(told, 2)
        moved = [not torch.equal(ask(told.fake_score, rung), plain) for rung in range(4)]
        assert moved == [False, False, True, False]
        ask(told.fake_score, 2)
        others = [ask(told.student), ask(told.teacher), ask(told.student)]
        assert all(torch.equal(other, plain) for other in others), "nobody else hears of it, whoever was asked before"
    told.fake_score.rung = 1
    ask(told.fake_score, 1).square().sum().backward()
    for table in rows_of(told):
        assert table.requires_grad and table.dtype == torch.float32
        assert [bool(row.any()) for row in table.grad] == [False, True, False, False]


def test_a_first_cycle_without_and_with_zero_tables_is_the_same_to_the_bit(tiny, plugins):
    """The fake score's first loss and, tables being trained by then, its rows are all that differs after its turn."""
    first = {}
    for flag in (ON, OFF):
        trainer = Trainer(tiny("model.student_steps=4", flag), plugins, Accelerator(cpu=True))
        metrics = trainer.fake_score_turn(0)
        state = trainer.fake_score.state_dict()
        first[flag] = (metrics["loss/fake_score"], {n: p for n, p in state.items() if "rungs" not in n})
        student = trainer.student_turn()
        assert student["loss/student"].isfinite()
    assert torch.equal(first[ON][0], first[OFF][0])
    # The gradient's norm counts the rows too, so clipping may differ; nothing is clipped here.
    assert all(torch.equal(first[ON][1][name], value) for name, value in first[OFF][1].items())


@pytest.mark.parametrize("objective", ["dmd", "decoupled_dmd", "dmd2", "amd"])
def test_only_the_rung_of_a_turn_is_trained_and_the_student_asks_about_its_own(tiny, plugins, objective):
    recipe = tiny("model.student_steps=4", "objective.gan_weight=0.1", "train.rollouts=fresh", objective=objective)
    trainer = Trainer(recipe, plugins, Accelerator(cpu=True))
    (table,) = rows_of(trainer)
    trained = set()
    for _ in range(6):
        rungs = {
            trainer.rollouts.batch(trainer.step, "fake score", update).exit_rung for update in range(trainer.train.fake_updates)
        }
        trained |= rungs
        trainer.cycle()
        assert {k for k in range(4) if table[k].any()} == trained, "without momentum other rows stay where they are"
        assert trainer.fake_score.rung == trainer.rollouts.last_batch.exit_rung
    assert len(trained) > 1
    assert trainer.student.rung is None and trainer.teacher.rung is None


@pytest.fixture(autouse=True)
def remembers_batches(monkeypatch):
    """The last batch of a trainer's rollouts, as `last_batch`."""
    original = Rollouts.batch

    def batch(self, step, turn, update):
        self.last_batch = original(self, step, turn, update)
        return self.last_batch

    monkeypatch.setattr(Rollouts, "batch", batch)


def test_a_discriminator_looks_at_the_features_of_the_samples_rung(trainer_of):
    trainer = trainer_of("sd3", "objective.gan_weight=0.1", "train.real=teacher", "train.teacher_samples=8")
    batch, rows = trainer.rollouts.batch(trainer.step, "student", 2), slice(0, 8)
    fill(trainer, 3)
    seen, x0 = [], torch.randn(8, *trainer.backbone.sample_shape, generator=torch.Generator().manual_seed(1))
    for rung in (0, 3, 0):
        trainer.fake_score.rung = rung
        with torch.no_grad():
            seen.append(trainer.adversary.student_loss(x0, batch, rows, torch.full((8,), 300.0)))
    assert torch.equal(seen[0], seen[2]) and not torch.equal(seen[0], seen[1])


@pytest.mark.parametrize("family", ["dit", "sdxl", "wan", "sd3"])
@pytest.mark.parametrize("how", [("model.roles=separate",), SHARED], ids=["separate", "shared"])
def test_recomputed_activations_have_the_row_too(family, how, trainer_of):
    """In DiT the tables lie inside of what is recomputed; on a shared base others are called in between."""
    rows = []
    for flag in ("false", "true"):
        trainer = trainer_of(family, *how, f"train.gradient_checkpointing={flag}", "train.accumulation=2", "train.fake_lr=1.0")
        fill(trainer, slice(None), 0.3)
        trained = one_turn(trainer)
        rows.append([p.detach().clone() for p in trainer.fake_score.parameters()])
        assert all((table[trained] != 0.3).any() for table in rows_of(trainer))
        trainer.student_turn()
    for kept, recomputed in zip(*rows, strict=True):
        torch.testing.assert_close(kept, recomputed, rtol=1e-4, atol=1e-4)


def test_a_compiled_network_is_one_graph_for_all_rungs(tiny, plugins):
    torch._dynamo.reset()
    trainer = Trainer(tiny("model.student_steps=6", "train.compile=true"), plugins, Accelerator(cpu=True))
    plain = Trainer(tiny("model.student_steps=6"), plugins, Accelerator(cpu=True))
    for one in (trainer, plain):
        fill(one, slice(None))
        fill(one, 4, 1.0)
    ask, expected = asker(trainer), asker(plain)
    with torch.no_grad():
        ask(trainer.fake_score, 0)
        graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        for rung in range(6):
            said = expected(plain.fake_score, rung)
            torch.testing.assert_close(ask(trainer.fake_score, rung), said, rtol=1e-4, atol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs > 0


@pytest.mark.parametrize("family", ["dit", "sdxl", "wan", "wan22", "sd3"])
@pytest.mark.parametrize("how", [("model.roles=separate",), SHARED], ids=["separate", "shared"])
def test_half_precision_weights(family, how, trainer_of):
    """Tables are trained in fp32 whatever the frozen weights are in, and leave the precision of activations alone."""
    trainer = trainer_of(family, *how, "model.dtype=bf16")
    ask = asker(trainer)
    with torch.no_grad():
        before = ask(trainer.fake_score, 1)
        fill(trainer, 1)
        after = ask(trainer.fake_score, 1)
    assert after.dtype == before.dtype and not torch.equal(before, after)
    assert {table.dtype for table in rows_of(trainer)} == {torch.float32}
    assert all(value.isfinite() for value in trainer.cycle().values())


@pytest.mark.parametrize("how", [("model.roles=separate",), SHARED], ids=["separate", "shared"])
@pytest.mark.parametrize("family", ["mlp", "sd3"])
def test_resumed_equals_straight_to_the_bit(family, how, trainer_of, plugins, tmp_path):
    how = (*how, "model.lora.target_modules=[modulate]") if family == "mlp" else how
    recipe = trainer_of(family, *how, "train.max_steps=3", "train.checkpoint_every=1", "train.keep_checkpoints=9").recipe
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    run.train(recipe, plugins, straight)
    run.train(recipe, plugins, resumed, resume=str(straight / "checkpoints" / "step-000001"))
    saved = load_file(straight / "checkpoints" / "step-000003" / "fake_score.safetensors")
    tables = [value for name, value in saved.items() if "rungs" in name]
    assert tables and all(table.any() for table in tables)
    for part in ("student", "fake_score", "ema", "optimizer_student", "optimizer_fake_score"):
        one, two = ((d / "checkpoints" / "step-000003" / f"{part}.safetensors").read_bytes() for d in (straight, resumed))
        assert one == two, part
    for part in ("student", "ema"):
        names = load_file(straight / "checkpoints" / "step-000003" / f"{part}.safetensors")
        assert not [name for name in names if "rungs" in name]


@pytest.mark.parametrize("family", ["sdxl", "wan"])
def test_an_exported_student_has_no_trace_of_it(family, trainer_of, plugins, tmp_path, pipeline_folder):
    recipe = trainer_of(family, *SHARED).recipe
    run.train(recipe, plugins, tmp_path / "run")
    component = "unet" if family == "sdxl" else "transformer"
    exported, original = (
        {n for file in (folder / component).glob("*.safetensors") for n in load_file(file)}
        for folder in (tmp_path / "run" / "student", pipeline_folder(family))
    )
    assert exported == original
    adapter = load_file(tmp_path / "run" / "student" / "lora" / "pytorch_lora_weights.safetensors")
    assert adapter and not [name for name in adapter if "rungs" in name]


def test_a_merged_copy_is_free_of_hooks_and_the_base_keeps_its_own(trainer_of):
    trainer = trainer_of("sd3", *SHARED)
    ask = asker(trainer)
    with torch.no_grad():
        fill(trainer, 1)
        told = ask(trainer.fake_score, 1)
        merged = trainer.student.merged()
        assert tables_of(merged, RUNGS) is None and not any(module._forward_hooks for module in merged.modules())
        assert torch.equal(ask(trainer.fake_score, 1), told)


@pytest.mark.parametrize("steps", [1, 4])
def test_by_default_when_there_are_several_steps(tiny, plugins, steps):
    trainer = Trainer(tiny(f"model.student_steps={steps}"), plugins, Accelerator(cpu=True))
    found = tables_of(trainer.fake_score.network, RUNGS)
    assert (found is not None) == (steps > 1)
    assert all(tables_of(role.network, RUNGS) is None for role in (trainer.student, trainer.teacher))


def test_what_does_not_fit_is_said(tiny):
    with pytest.raises(
        InputError, match=r"model.rung_conditioning: tells the steps of a student apart, and model.student_steps"
    ):
        tiny(ON)
    with pytest.raises(InputError, match=r"train.sub_interval: is for students of several steps"):
        tiny("train.sub_interval=true")


def test_a_family_that_does_not_say_where(piped, plugins, monkeypatch, caplog):
    monkeypatch.delattr(SD3, "time_embeddings")
    with pytest.raises(InputError, match=r"model.rung_conditioning: the family of StableDiffusion3Pipeline does not say where"):
        piped("sd3", ON)
    trainer = Trainer(piped("sd3", objective="dmd"), plugins, Accelerator(cpu=True))
    assert tables_of(trainer.fake_score.network, RUNGS) is None
    said = [record.message for record in caplog.records if "time_embeddings" in record.message]
    assert len(said) == 1 and "model.rung_conditioning: false" in said[0]
    caplog.clear()
    Trainer(piped("sd3", OFF, objective="dmd"), plugins, Accelerator(cpu=True))
    assert not [record for record in caplog.records if "time_embeddings" in record.message]


def test_a_checkpoint_from_before_goes_on_without(tiny, plugins, tmp_path):
    """A run whose recipe says nothing, of a version that had no tables."""
    recipe = tiny("model.student_steps=2", OFF, "train.max_steps=2")
    run.train(recipe, plugins, tmp_path / "old")
    at = str(tmp_path / "old" / "checkpoints" / "step-000002")
    longer = tiny("model.student_steps=2", "train.max_steps=3")
    with pytest.raises(InputError, match=r"the fake score there was not conditioned .* Set model.rung_conditioning: false"):
        run.train(longer, plugins, tmp_path / "new", resume=at)
    assert not (tmp_path / "new").exists()
    run.train(tiny("model.student_steps=2", OFF, "train.max_steps=3"), plugins, tmp_path / "new", resume=at)


def test_told_it_tells_rungs_apart_and_untold_it_learns_their_mixture(tiny, plugins, monkeypatch):
    """Rung 0 makes -1 and rung 1 makes +1, always. At almost pure noise a denoiser can only say the mean of what it knows."""

    def constant(self, batch, rows, *, grad):
        return Exit(None, torch.full((rows.stop - rows.start, 2), -1.0 if batch.exit_rung == 0 else 1.0))

    monkeypatch.setattr(Forward, "rollout", constant)
    means = {}
    for flag in (ON, OFF):
        size = ("model.student_steps=2", "model.width=32", "train.batch_size=32", "train.max_steps=300")
        how = (*size, "train.fake_lr=5e-3", "train.sigma=[0.9, 0.98]")
        recipe = tiny(*how, flag, objective="dmd")
        trainer = Trainer(recipe, plugins, Accelerator(cpu=True))
        for step in range(300):
            trainer.step = step
            trainer.fake_score_turn(0)
        noise = torch.randn(256, 2, generator=torch.Generator().manual_seed(0))
        timestep, labels = torch.full((256,), 970.0), torch.arange(256) % 8
        for rung in (0, 1):
            trainer.fake_score.rung = rung
            with torch.no_grad():
                output = trainer.forward.caller.call(trainer.fake_score, noise, timestep, trainer.forward.condition(labels))
            said = trainer.forward.schedule.to_x0(output, noise, trainer.forward.schedule.level(timestep))
            means[flag, rung] = said.mean().item()
    assert means[ON, 0] == pytest.approx(-1, abs=0.05) and means[ON, 1] == pytest.approx(1, abs=0.05)
    assert means[OFF, 0] == means[OFF, 1] == pytest.approx(0, abs=0.2)


def test_a_plan_counts_the_tables(tiny, plugins):
    from amd_plugin.plan import plan

    on, off = (plan(tiny("model.student_steps=4", flag), plugins, 1, 80_000_000_000) for flag in (ON, OFF))
    assert on.rows["fake_score"].weights - off.rows["fake_score"].weights == 4 * 4 * 16
    assert on.rows["student"] == off.rows["student"] and on.rows["teacher"] == off.rows["teacher"]
