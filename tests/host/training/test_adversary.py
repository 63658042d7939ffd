"""The GAN branch of DMD2: for every family, with every objective, and each gradient where it belongs."""

import pytest
import torch
from accelerate import Accelerator
from torch.nn.functional import softplus

from amd_plugin.host import run
from amd_plugin.host.training.trainer import Trainer
from amd_plugin.maths.adversarial import Adversarial
from tests.helpers.pipelines import BUILD

TEACHERS = ("train.real=teacher", "train.teacher_samples=8")


def parameters(trainer):
    roles = {
        "student": trainer.student,
        "fake_score": trainer.fake_score,
        "discriminator": trainer.learners["discriminator"].role,
    }
    return {name: [p.detach().clone() for p in role.parameters()] for name, role in roles.items()}


def moved(before, after):
    return {name for name in before if any(not torch.equal(a, b) for a, b in zip(before[name], after[name], strict=True))}


@pytest.mark.parametrize("family", BUILD)
@pytest.mark.parametrize("roles", ["separate", "shared_base"])
def test_each_turn_moves_only_its_own_role(family, roles, piped, plugins):
    how = (f"model.roles={roles}", "objective.gan_weight=0.1", "objective.gan_r1=0.1", *TEACHERS)
    if family in ("dit", "sit"):
        how = (*how, "model.lora.target_modules=[to_q, to_v]")
    trainer = Trainer(piped(family, *how), plugins, Accelerator(cpu=True))
    teacher = {n: p.clone() for n, p in trainer.teacher.network.named_parameters() if "lora" not in n and "rungs" not in n}
    start = parameters(trainer)
    metrics = trainer.fake_score_turn(0)
    middle = parameters(trainer)
    assert moved(start, middle) == {"fake_score", "discriminator"}
    metrics |= trainer.student_turn()
    assert moved(middle, parameters(trainer)) == {"student"}
    for name in ("loss/discriminator", "loss/student_adversarial", "grad_norm/discriminator"):
        assert torch.isfinite(metrics[name]), name
    grads = [p.grad for role in (trainer.fake_score, trainer.learners["discriminator"].role) for p in role.parameters()]
    assert all(g is None or not g.any() for g in grads)
    assert all(torch.equal(teacher[n], p) for n, p in trainer.teacher.network.named_parameters() if n in teacher)


def test_the_logged_loss_is_the_mean_over_micro_batches(tiny, plugins, monkeypatch):
    trainer = Trainer(
        tiny("objective.gan_weight=0.3", "train.accumulation=4", objective="dmd2"), plugins, Accelerator(cpu=True)
    )
    losses = iter((1.0, 2.0, 3.0, 6.0))
    monkeypatch.setattr(trainer.adversary, "student_loss", lambda x0, *_: 0 * x0.sum() + next(losses))
    assert trainer.student_turn()["loss/student_adversarial"] == 3.0


def test_the_students_adversarial_gradient_is_that_of_the_written_out_loss(tiny, plugins):
    """Against autograd through a forward written by hand: fake score's middle features -> head -> softplus(-logit)."""
    trainer = Trainer(tiny("objective.gan_weight=0.3", objective="dmd2"), plugins, Accelerator(cpu=True))
    trainer.cycle()
    batch, rows = trainer.rollouts.batch(trainer.step, "student", 3), slice(0, 16)
    x0 = torch.randn(16, 2, generator=torch.Generator().manual_seed(0), requires_grad=True)
    t = torch.full((16,), 300.0)
    (mine,) = torch.autograd.grad(trainer.adversary.student_loss(x0, batch, rows, t), x0)

    network, head = trainer.fake_score.network, trainer.learners["discriminator"].role.network
    caught = []
    where = trainer.backbone.family.features(network).module
    hook = where.register_forward_hook(lambda module, inputs, output: caught.append(output))
    x_t = (1 - 0.3) * x0 + 0.3 * batch.normal("discriminator noise")
    network(x_t, timestep=t, class_labels=batch.labels)
    hook.remove()
    (expected,) = torch.autograd.grad(0.3 * softplus(-head(caught[0])).mean(), x0)
    torch.testing.assert_close(mine, expected)
    assert mine.abs().sum() > 0


def test_losses():
    losses, real, fake = Adversarial(2.0, r1=0.5), torch.tensor([1.0, -2.0]), torch.tensor([0.5, 3.0])
    expected = (softplus(-real) + softplus(fake)).mean()
    torch.testing.assert_close(losses.discriminator_loss(real, fake), expected)
    torch.testing.assert_close(losses.discriminator_loss(real, fake, real + 0.2), expected + 0.5 * 0.04)
    torch.testing.assert_close(losses.student_loss(fake), 2 * softplus(-fake).mean())


def test_weight_zero_is_dmd_to_the_bit(tiny, plugins):
    def trained(**options):
        trainer = Trainer(tiny(*options.pop("overrides", ()), **options), plugins, Accelerator(cpu=True))
        trainer.cycle()
        trainer.cycle()
        return trainer.student.parameters()

    off = trained(overrides=("objective.gan_weight=0",), objective="dmd2")
    for one, two in zip(off, trained(objective="dmd"), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("objective", ["dmd2", "amd"])
def test_resumed_equals_straight_to_the_bit(objective, tiny, plugins, tmp_path):
    recipe = tiny("objective.gan_weight=0.1", "train.checkpoint_every=2", "train.keep_checkpoints=9", objective=objective)
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    run.train(recipe, plugins, straight)
    run.train(recipe, plugins, resumed, resume=str(straight / "checkpoints" / "step-000002"))
    names = {path.name for path in (straight / "checkpoints" / "step-000004").glob("*.safetensors")}
    assert {"discriminator.safetensors", "optimizer_discriminator.safetensors"} <= names
    for name in names:
        one, two = ((folder / "checkpoints" / "step-000004" / name).read_bytes() for folder in (straight, resumed))
        assert one == two, name


def test_accumulation_does_not_change_it(tiny, plugins):
    def trained(parts):
        trainer = Trainer(tiny("objective.gan_weight=0.1", f"train.accumulation={parts}"), plugins, Accelerator(cpu=True))
        trainer.cycle()
        return [p for part in parameters(trainer).values() for p in part]

    for one, two in zip(trained(1), trained(4), strict=True):
        torch.testing.assert_close(one, two, rtol=2e-5, atol=2e-5)


def test_students_that_start_from_real_data(tiny, plugins):
    """``rollout: data``: the exit rung's input is a noised real sample of the class that is asked for."""
    recipe = tiny("train.rollout=data", "model.student_steps=3", objective="dmd")
    trainer = Trainer(recipe, plugins, Accelerator(cpu=True))
    batch, seen = trainer.rollouts.batch(trainer.step, "student", 3), []
    hook = trainer.student.network.register_forward_pre_hook(
        lambda module, inputs, kw: seen.append(inputs[0]), with_kwargs=True
    )
    trainer.forward.rollout(batch, slice(0, 16), grad=False)
    hook.remove()
    level = trainer.forward.ladder.level(batch.exit_rung, 16)
    torch.testing.assert_close(seen[-1], level.add_noise(batch.real, batch.normal("rung 0")))
    assert len(seen) == 1, "no rollout is simulated"
    assert torch.equal(batch.labels.unflatten(0, (-1, 4)).unique(dim=1).flatten(), batch.labels[::4]), "groups share a label"
    before = parameters_of(trainer)
    trainer.cycle()
    assert any(not torch.equal(a, b) for a, b in zip(before, parameters_of(trainer), strict=True))


def parameters_of(trainer):
    return [p.detach().clone() for p in trainer.student.parameters()]


@pytest.mark.parametrize("overrides", [("objective.gan_weight=0.1",), ("train.rollout=data",)])
def test_real_samples_must_come_from_somewhere(piped, overrides):
    from amd_plugin.errors import InputError

    with pytest.raises(
        InputError, match=r"train.real: .* needs real samples; name data.image_column, or take the teacher's own"
    ):
        piped("sdxl", *overrides)
