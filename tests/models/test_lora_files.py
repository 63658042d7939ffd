"""LoRA files of others: a teacher with one is the fused pipeline to the bit, and roles start from them, in every format."""

import json

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import save_file

from amd_plugin.config import LoraConfig
from amd_plugin.errors import InputError
from amd_plugin.host import run
from amd_plugin.host.student.export import export_run
from amd_plugin.models.backbone import load_backbone
from amd_plugin.models.roles import StartNetworks, make_roles
from tests.helpers.pipelines import elsewhere

TARGETS = tuple(f".{ending}" for ending in LoraConfig().target_modules)
PART = {"sdxl": "unet", "wan": "transformer", "sd3": "transformer"}
LINEAR = f"model.lora.target_modules={list(LoraConfig().target_modules)}"


def matrices(module, rank=3):
    """Random layers of rank `rank` for attention and feed-forward of `module`, in diffusers' names."""
    draws, made = torch.Generator().manual_seed(0), {}
    for name, part in module.named_modules():
        if name.endswith(TARGETS) and hasattr(part, "in_features"):
            made[f"{name}.lora_A.weight"] = torch.randn(rank, part.in_features, generator=draws) * 0.3
            made[f"{name}.lora_B.weight"] = torch.randn(part.out_features, rank, generator=draws) * 0.3
    return made


@pytest.fixture
def lora(pipeline_folder, tmp_path):
    """``lora("sdxl", "kohya")``: a LoRA file for a tiny pipeline; kohya's and Wan's original have alpha 2 at rank 3."""

    def make(family, form="diffusers", rank=3, text=False):
        pipeline = DiffusionPipeline.from_pretrained(pipeline_folder(family))
        part, file = PART[family], tmp_path / f"{family}-{form}-{rank}.safetensors"
        layers = matrices(getattr(pipeline, part), rank)
        named = {f"{part}.{name}": value for name, value in layers.items()}
        if text:
            named |= {f"text_encoder.{n.replace('lora_A', 'lora_linear_layer.down').replace('lora_B', 'lora_linear_layer.up')}": v
                      for n, v in text_matrices(pipeline.text_encoder).items()}  # fmt: skip
        about = {}
        if form == "metadata":
            about = {
                "lora_adapter_metadata": json.dumps(
                    {f"{part}.r": rank, f"{part}.lora_alpha": 2, f"{part}.target_modules": [t[1:] for t in TARGETS]}
                )
            }
        elif form != "diffusers":
            from amd_plugin import get_plugin_manager

            kind = get_plugin_manager().families()[type(pipeline).__name__]
            named = kind(dict(pipeline.config), dict(getattr(pipeline, part).config)).adapter_elsewhere(layers).layers
            named |= {name: torch.tensor(2.0) for name in named if name.endswith(".alpha")}
        save_file({name: value.contiguous() for name, value in named.items()}, file, metadata=about)
        return file

    return make


def text_matrices(encoder):
    draws = torch.Generator().manual_seed(1)
    names = [n for n, m in encoder.named_modules() if n.endswith(("q_proj", "v_proj"))]
    size = encoder.config.hidden_size
    return {f"{n}.{layer}.weight": torch.randn(shape, generator=draws)
            for n in names for layer, shape in (("lora_A", (2, size)), ("lora_B", (size, 2)))}  # fmt: skip


def fused(folder, file, weight):
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.load_lora_weights(file.parent, weight_name=file.name)
    pipeline.fuse_lora(lora_scale=weight)
    pipeline.unload_lora_weights()
    return pipeline


@pytest.mark.parametrize(
    ("family", "form", "text"),
    [("sdxl", "diffusers", True), ("sdxl", "kohya", False), ("sdxl", "metadata", False), ("wan", "diffusers", False), ("wan", "original", False),
     ("sd3", "diffusers", False)],
)  # fmt: skip
def test_a_teacher_with_a_lora_is_the_fused_pipeline_to_the_bit(family, form, text, lora, piped, plugins, pipeline_folder):
    file = lora(family, form, text=text)
    recipe = piped(family, f"model.teacher_lora={{path: {file}, weight: 0.7}}")
    assert recipe.config.model.teacher_lora.weight == 0.7
    made = load_backbone(recipe.config.model, recipe.task, 0, plugins.families())
    theirs, plain = fused(pipeline_folder(family), file, 0.7), DiffusionPipeline.from_pretrained(pipeline_folder(family))
    ours, wanted = made.network.state_dict(), getattr(theirs, PART[family]).state_dict()
    assert ours.keys() == wanted.keys() and all(torch.equal(ours[name], wanted[name]) for name in wanted)
    assert any(not torch.equal(ours[name], value) for name, value in getattr(plain, PART[family]).state_dict().items())
    assert not any(parameter.requires_grad for parameter in made.network.parameters())
    if text:
        made.conditions.prepare(["a red fox"], torch.device("cpu"))
        condition = made.conditions(torch.zeros(1), lambda: ["a red fox"])
        with torch.no_grad():
            both = [made.family.encode_prompts(pipeline, ["a red fox"], None, made.size) for pipeline in (theirs, plain)]
        assert torch.equal(condition["encoder_hidden_states"], both[0]["encoder_hidden_states"])
        assert not torch.equal(condition["encoder_hidden_states"], both[1]["encoder_hidden_states"])


@pytest.mark.parametrize("roles", ["shared_base", "separate"])
@pytest.mark.parametrize(("family", "form"), [("sdxl", "kohya"), ("wan", "original")])
def test_student_and_fake_score_start_from_loras(family, form, roles, lora, piped, plugins, pipeline_folder):
    file = lora(family, form)
    recipe = piped(family, f"model.roles={roles}", LINEAR, f"model.student_lora={file}", f"model.fake_score_lora={{path: {file}, weight: 0.5}}",
                   "model.lora.rank=8")  # fmt: skip
    made = load_backbone(recipe.config.model, recipe.task, 0, plugins.families())
    loras = {role: read() for role, read in made.loras.items()}
    made_roles = make_roles(recipe.config.model, StartNetworks(made.network, loras=loras), 0)
    for role, weight in (("student", 1.0), ("fake_score", 0.5)):
        wanted = getattr(fused(pipeline_folder(family), file, weight), PART[family]).state_dict()
        for name, value in made_roles[role].merged().state_dict().items():
            torch.testing.assert_close(value, wanted[name], rtol=1e-4, atol=1e-5)
    plain = getattr(DiffusionPipeline.from_pretrained(pipeline_folder(family)), PART[family]).state_dict()
    assert all(torch.equal(value, plain[name]) for name, value in made_roles["teacher"].merged().state_dict().items())


@pytest.mark.parametrize(
    ("key", "of", "more", "said"),
    [
        ("student_lora", "sdxl", ("model.lora.rank=2",), "has rank 3 in"),
        ("student_lora", "sdxl", ("model.lora.target_modules=[to_q]",), "model.lora.target_modules leaves out"),
        ("student_lora", "wan", (), "it is for another model"),
        ("teacher_lora", "wan", (), "it is for another model"),
        ("teacher_lora", "nowhere.safetensors", (), "neither a file, nor a folder, nor a hub id"),
        ("teacher_lora", "dora", (), "is a DoRA"),
        ("teacher_lora", "full", (), "is no LoRA"),
    ],
)
def test_files_that_do_not_fit_are_refused(key, of, more, said, lora, piped, plugins, tmp_path):
    file = tmp_path / of
    if of in PART:
        file = lora(of)
    elif of in ("dora", "full"):
        file = tmp_path / f"{of}.safetensors"
        names = ["lora_unet_x.dora_scale", "lora_unet_x.lora_up.weight"] if of == "dora" else ["conv_in.weight"]
        save_file({name: torch.zeros(1) for name in names}, file)
    with pytest.raises(InputError, match=key) as caught:
        recipe = piped("sdxl", "model.roles=shared_base", LINEAR, f"model.{key}={file}", *more)
        made = load_backbone(recipe.config.model, recipe.task, 0, plugins.families())
        make_roles(
            recipe.config.model, StartNetworks(made.network, loras={role: read() for role, read in made.loras.items()}), 0
        )
    assert said in str(caught.value)


def test_a_run_with_loras_exports_what_plain_diffusers_puts_together_again(lora, piped, plugins, tmp_path, pipeline_folder):
    file = lora("sdxl", "diffusers", text=True)
    start = lora("sdxl", "kohya", rank=2)
    settings = (
        "model.roles=shared_base",
        LINEAR,
        "model.lora.rank=4",
        f"model.teacher_lora={file}",
        f"model.student_lora={start}",
        "train.max_steps=1",
    )
    run.train(piped("sdxl", *settings), plugins, tmp_path / "run")
    adapter = export_run(tmp_path / "run", plugins, tmp_path / "adapter", how="lora")
    card = (adapter / "README.md").read_text()
    assert (
        f'pipeline.load_lora_weights("{file.name}")  # merged into the teacher' in card
        and "load that too, in every program" in card
    )
    pictures = elsewhere(
        f"""
        import json, torch
        from diffusers import DiffusionPipeline
        full = DiffusionPipeline.from_pretrained({str(tmp_path / "run" / "student")!r})
        base = DiffusionPipeline.from_pretrained({str(pipeline_folder("sdxl"))!r}, scheduler=full.scheduler)
        base.load_lora_weights({str(file.parent)!r}, weight_name={file.name!r})
        base.fuse_lora()
        base.unload_lora_weights()
        base.load_lora_weights({str(adapter)!r}, weight_name="pytorch_lora_weights.safetensors")
        def sample(pipeline):
            torch.manual_seed(0)
            return pipeline("a red fox", guidance_scale=1.0, num_inference_steps=4, output_type="latent").images.flatten().tolist()
        print(json.dumps([sample(full), sample(base)]))
        """,
        cwd=tmp_path,
    )
    torch.testing.assert_close(*map(torch.tensor, pictures), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prefix", ["base_model.model.", "unet._orig_mod.", ""])
def test_names_of_peft_and_of_compiled_networks(prefix, piped, plugins, pipeline_folder, tmp_path):
    layers = matrices(DiffusionPipeline.from_pretrained(pipeline_folder("sdxl")).unet)
    for file, start in ((tmp_path / "other.safetensors", prefix), (tmp_path / "usual.safetensors", "unet.")):
        save_file({f"{start}{name}": value.half() for name, value in layers.items()}, file)
    recipe = piped("sdxl", f"model.teacher_lora={tmp_path / 'other.safetensors'}")
    made = load_backbone(recipe.config.model, recipe.task, 0, plugins.families())
    wanted = fused(pipeline_folder("sdxl"), tmp_path / "usual.safetensors", 1.0).unet.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in made.network.state_dict().items())


def test_names_of_sdxls_original_blocks(piped, plugins, pipeline_folder, tmp_path):
    """kohya's trainer names SDXL's layers so: input_blocks, middle_block, output_blocks."""
    unet = DiffusionPipeline.from_pretrained(pipeline_folder("sdxl")).unet
    # With one layer per block: input block 3 is down_blocks.1's first, output blocks 0 and 1 are up_blocks.0's.
    names = {"down_blocks.1.attentions.0": "input_blocks.3.1", "mid_block.attentions.0": "middle_block.1",
             "up_blocks.0.attentions.0": "output_blocks.0.1", "up_blocks.0.attentions.1": "output_blocks.1.1"}  # fmt: skip
    theirs, change = {}, {}
    for ours, original in names.items():
        name = "transformer_blocks.0.attn1.to_q"
        down, up = (
            torch.randn(2, unet.get_submodule(f"{ours}.{name}").in_features),
            torch.randn(unet.get_submodule(f"{ours}.{name}").out_features, 2),
        )
        key = f"lora_unet_{original}_{name}".replace(".", "_")
        theirs |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(1.0)}
        change[f"{ours}.{name}.weight"] = up @ down / 2
    save_file(theirs, tmp_path / "sgm.safetensors")
    recipe = piped("sdxl", f"model.teacher_lora={tmp_path / 'sgm.safetensors'}")
    made = load_backbone(recipe.config.model, recipe.task, 0, plugins.families()).network.state_dict()
    for name, weight in unet.state_dict().items():
        torch.testing.assert_close(made[name], weight + change.get(name, 0), rtol=1e-5, atol=1e-5)
