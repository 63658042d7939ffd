"""Student, fake score and teacher as networks of their own or as adapters on one base: who owns what, and who is moved."""

import copy
import subprocess
import sys

import pytest
import torch
from accelerate import Accelerator
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file

from amd_plugin.config import LoraConfig, ModelConfig
from amd_plugin.host.training.trainer import Trainer
from amd_plugin.models.ema import EMA
from amd_plugin.models.roles import StartNetworks, make_roles
from tests.helpers.pipelines import BUILD

LORA = LoraConfig(rank=4, target_modules=["to_q", "to_v"])
TRANSFORMERS = [family for family in BUILD if family not in ("dit", "sit")]


def config(**options):
    return ModelConfig(path="nowhere", lora=LORA, **options)


@pytest.fixture
def network(pipeline_folder):
    unet = UNet2DConditionModel.from_pretrained(pipeline_folder("sdxl"), subfolder="unet").requires_grad_(False).eval()
    text = unet.config.cross_attention_dim
    pooled = unet.config.projection_class_embeddings_input_dim - 6 * unet.config.addition_time_embed_dim
    inputs = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([500, 20])
    asked = {"encoder_hidden_states": torch.ones(2, 3, text), "added_cond_kwargs": {"text_embeds": torch.ones(2, pooled), "time_ids": torch.ones(2, 6)}}  # fmt: skip
    return unet, lambda role: role(*inputs, **asked).sample


def nudge(role):
    with torch.no_grad():
        for parameter in role.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))


def test_a_shared_base_is_one_copy_and_three_roles(network):
    unet, output = network
    plain = output(unet)
    count = sum(p.numel() for p in unet.parameters())
    roles = make_roles(config(roles="shared_base"), StartNetworks(unet), 0)
    assert len({id(role.network) for role in roles.values()}) == 1
    adapters = sum(p.numel() for p in unet.parameters()) - count
    assert sum(p.numel() for name in ("student", "fake_score") for p in roles[name].parameters()) == adapters
    assert roles["teacher"].parameters() == []
    assert all(p.dtype == torch.float32 for p in roles["student"].parameters())
    for role in roles.values():
        assert torch.equal(output(role), plain), "adapters start as the teacher"
    nudge(roles["student"])
    student = output(roles["student"])
    assert not torch.allclose(student, plain)
    assert torch.equal(output(roles["teacher"]), plain) and torch.equal(output(roles["fake_score"]), plain)
    nudge(roles["fake_score"])
    assert not torch.allclose(output(roles["fake_score"]), student)
    assert torch.equal(output(roles["student"]), student), "roles do not leak into each other, in any order of calls"
    torch.testing.assert_close(output(roles["student"].merged()), student, rtol=1e-4, atol=1e-5)
    assert not [n for n, _ in roles["student"].merged().named_parameters() if "lora" in n]


def test_base_weights_may_be_half_precision_while_adapters_are_not(network):
    unet, _ = network
    roles = make_roles(config(roles="shared_base"), StartNetworks(copy.deepcopy(unet).to(torch.bfloat16)), 0)
    kinds = {name: {p.dtype for p in role.parameters()} for name, role in roles.items()}
    assert kinds == {"student": {torch.float32}, "fake_score": {torch.float32}, "teacher": set()}
    assert roles["teacher"].dtype == torch.bfloat16
    full = make_roles(config(), StartNetworks(copy.deepcopy(unet).to(torch.bfloat16)), 0)
    assert {p.dtype for p in full["student"].parameters()} == {torch.float32}, "fp32 masters"
    assert {p.dtype for p in full["teacher"].network.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("how", [{"roles": "shared_base"}, {"student": "lora"}, {"student": "lora", "fake_score": "lora"}, {}])
def test_states_go_round(network, how):
    unet, output = network
    roles = make_roles(config(**how), StartNetworks(copy.deepcopy(unet)), 0)
    for name in ("student", "fake_score"):
        nudge(roles[name])
        before, state = output(roles[name]), {k: v.clone() for k, v in roles[name].state_dict().items()}
        nudge(roles[name])
        roles[name].load_state_dict(state)
        torch.testing.assert_close(output(roles[name]), before)
    with pytest.raises((ValueError, RuntimeError)):
        roles["student"].load_state_dict({})


def test_a_lent_role_passes_gradients_through_and_takes_none(network):
    unet, output = network
    roles = make_roles(config(roles="shared_base"), StartNetworks(unet), 0)
    nudge(roles["student"])
    nudge(roles["fake_score"])
    student = output(roles["student"])
    with roles["fake_score"].without_grad():
        loss = (output(roles["fake_score"]) * student).sum()
    roles["student"].activate()  # as `Learner.backward` does
    loss.backward()
    assert all(p.grad is None for p in roles["fake_score"].parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in roles["student"].parameters())


def test_the_average_follows_and_is_only_lent(network):
    unet, output = network
    student = make_roles(config(), StartNetworks(unet), 0)["student"]
    ema = EMA(student, 0.5)
    first = {n: p.detach().clone() for n, p in student.named_parameters().items()}
    ema.update()
    nudge(student)
    ema.update()
    raw = output(student)
    with ema.applied():
        for name, parameter in student.named_parameters().items():
            now = first[name] + 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
            torch.testing.assert_close(parameter, (first[name] + now) / 2)
        assert not torch.allclose(output(student), raw)
    assert torch.equal(output(student), raw)


@pytest.mark.parametrize("family", TRANSFORMERS)
@pytest.mark.parametrize(
    "how",
    [
        ("model.roles=shared_base",),
        ("model.roles=separate", "model.student=lora"),
        ("model.roles=separate", "model.fake_score=lora"),
    ],
)
def test_each_loss_moves_only_its_own_adapter(family, how, piped, plugins):
    trainer = Trainer(piped(family, *how), plugins, Accelerator(cpu=True))
    base = {n: p.clone() for n, p in trainer.teacher.network.named_parameters() if "lora" not in n and "rungs" not in n}
    before = {name: [p.clone() for p in role.parameters()] for name, role in roles_of(trainer).items()}

    def moved():
        now = {name: role.parameters() for name, role in roles_of(trainer).items()}
        return {n for n in now if any(not torch.equal(a, b) for a, b in zip(now[n], before[n], strict=True))}

    trainer.fake_score_turn(0)
    assert moved() == {"fake_score"}
    trainer.student_turn()
    assert moved() == {"student", "fake_score"}
    assert all(torch.equal(base[n], p) for n, p in trainer.teacher.network.named_parameters() if n in base)


def roles_of(trainer):
    return {"student": trainer.student, "fake_score": trainer.fake_score}


@pytest.mark.parametrize("family", ["sdxl", "wan"])
@pytest.mark.parametrize(
    "roles", [("shared_base",), ("separate",), ("separate", "model.student=lora", "model.fake_score=lora")]
)
def test_gradient_checkpointing_changes_memory_and_nothing_else(family, roles, piped, plugins):
    """Adapters on a frozen base included, whose gradients other ways of checkpointing lose."""

    def trained(checkpointing):
        overrides = (
            f"model.roles={roles[0]}",
            *roles[1:],
            f"train.gradient_checkpointing={str(checkpointing).lower()}",
            "train.accumulation=2",
        )
        trainer = Trainer(piped(family, *overrides), plugins, Accelerator(cpu=True))
        before = [value.detach().clone() for role in roles_of(trainer).values() for value in role.parameters()]
        trainer.cycle()
        after = [value.detach() for role in roles_of(trainer).values() for value in role.parameters()]
        moved = [not torch.equal(*pair) for pair in zip(before, after, strict=True)]
        assert sum(moved) >= len(moved) // 3, "an adapter's down matrices wait for its up matrices, and nothing else does"
        return trainer.student.parameters()

    for one, two in zip(trained(False), trained(True), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", ["sdxl", "wan", "sd3"])
def test_a_half_precision_base_without_autocast(family, piped, plugins):
    """Wan keeps some of its parameters in fp32, the first among them; inputs have the precision of the others."""
    trainer = Trainer(piped(family, "model.dtype=bf16", "model.roles=shared_base"), plugins, Accelerator(cpu=True))
    assert trainer.teacher.dtype == torch.bfloat16
    seen = []
    hook = trainer.teacher.network.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append((*args, kwargs.get("hidden_states"))[0].dtype), with_kwargs=True
    )
    metrics = trainer.cycle()
    hook.remove()
    assert set(seen) == {torch.bfloat16} and metrics["loss/student"].isfinite()


def test_compiled_networks_train_the_same(tiny, plugins):
    """With a discriminator too, which hooks the features of the fake score in calls that were compiled without the hook."""

    def trained(compiled):
        recipe = tiny(f"train.compile={str(compiled).lower()}", "objective.gan_weight=0.1", objective="dmd2")
        trainer = Trainer(recipe, plugins, Accelerator(cpu=True))
        trainer.cycle()
        return trainer.student.parameters()

    torch._dynamo.reset()
    for one, two in zip(trained(False), trained(True), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["sdxl", "wan"])
def test_mixed_precision_with_a_half_precision_base(family, tmp_path, pipeline_folder):
    """As on a GPU: frozen weights in bf16, autocast, trained weights and their checkpoints in fp32. In a process of its own."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red fox\na blue boat\n")
    recipe = "wan21_1_3b_4step" if family == "wan" else "sdxl_4step"
    size = ("model.pixels=[16, 16]", "model.frames=5", "model.text_length=8") if family == "wan" else ()
    sets = (
        f"model.path={pipeline_folder(family)}", "model.pipeline=null", f"data.source={prompts}", "rewards=[{name: random}]",
        "model.lora.target_modules=[to_q, to_v]", "train.max_steps=1", "train.batch_size=4", "train.group_size=2",
        "train.accumulation=1", "train.fake_updates=1", "evaluate.samples=10", "data.per_prompt=2", "train.trackers=[]", *size,
    )  # fmt: skip
    command = [sys.executable, "-m", "amd_plugin.cli", "train", recipe, "--output", "run", *(f"--set={s}" for s in sets)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    saved = load_file(tmp_path / "run" / "checkpoints" / "step-000001" / "student.safetensors")
    assert {value.dtype for value in saved.values() if value.is_floating_point()} == {torch.float32}
    component = "unet" if family == "sdxl" else "transformer"
    exported = next((tmp_path / "run" / "student" / component).glob("*.safetensors"))
    assert torch.bfloat16 in {value.dtype for value in load_file(exported).values()}
