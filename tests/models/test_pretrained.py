"""Pipelines that cannot be used end with exit code 2 and a sentence, before anything is trained or written."""

import json
import shutil

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDPMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file

from amd_plugin.errors import InputError
from amd_plugin.models.backbone import load_backbone
from amd_plugin.models.pretrained import Pretrained
from tests.helpers.pipelines import BUILD, sdxl


@pytest.fixture
def copy(pipeline_folder, tmp_path):
    """A copy of a tiny pipeline's folder, to be broken."""

    def make(family):
        return shutil.copytree(pipeline_folder(family), tmp_path / family)

    return make


@pytest.fixture
def refused(cli, tmp_path, monkeypatch):
    """What `train sdxl_4step` says of a pipeline; asserts that it ended with 2 and left nothing behind."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def run(path, *overrides, dry=False, recipe="sdxl_4step"):
        prompts = tmp_path / "prompts.txt"
        prompts.write_text("a red fox\na blue boat\n")
        sets = (f"model.path={path}", f"data.source={prompts}", "rewards=[{name: random}]", "model.dtype=fp32",
                "distributed.mixed_precision='no'", *overrides)  # fmt: skip
        output = tmp_path / "run"
        extra = ("--dry-run",) if dry else ()
        code, said = cli("train", recipe, "--output", output, *extra, *(f"--set={s}" for s in sets))
        assert code == 2, said
        assert "Traceback" not in said
        assert not output.exists()
        return said

    return run


def test_a_pipeline_of_another_family(refused, pipeline_folder):
    said = refused(pipeline_folder("wan"))
    assert "model.path" in said and "StableDiffusionXLPipeline" in said and "WanPipeline" in said
    assert "--set model.path=" in said, "the message names where the path was given"


def test_a_class_nobody_registered(refused, copy):
    folder = copy("sdxl")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "_class_name": "KandinskyPipeline"}))
    said = refused(folder, "model.pipeline=null")
    assert "KandinskyPipeline" in said and "StableDiffusion3Pipeline, StableDiffusionXLPipeline, WanPipeline" in said


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda f: (f / "model_index.json").unlink(), "no model_index.json, but scheduler"),
        (lambda f: (f / "model_index.json").write_text("{"), "model_index.json cannot be read"),
        (lambda f: shutil.rmtree(f / "unet"), "unet is missing, though model_index.json names it"),
        (lambda f: shutil.rmtree(f / "scheduler"), "scheduler is missing"),
        (lambda f: (f / "unet" / "config.json").unlink(), "unet/config.json cannot be read"),
    ],
)
def test_folders_with_something_missing(copy, refused, break_it, said):
    folder = copy("sdxl")
    break_it(folder)
    assert said in refused(folder)


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda f: [p.unlink() for p in (f / "unet").glob("*.safetensors")], "unet cannot be read"),
        (lambda f: next((f / "unet").glob("*.safetensors")).write_bytes(b"\0" * 100), "unet cannot be read"),
        (lambda f: shutil.rmtree(f / "text_encoder"), "text encoders cannot be read"),
    ],
)
def test_weights_that_cannot_be_read(copy, refused, break_it, said):
    """Found before training too, though only when they are loaded."""
    folder = copy("sdxl")
    break_it(folder)
    assert said in refused(folder)


def test_pickled_weights_are_not_read(copy, refused):
    folder = copy("sdxl")
    weights = next((folder / "unet").glob("*.safetensors"))
    weights.unlink()
    torch.save(sdxl().unet.state_dict(), folder / "unet" / "diffusion_pytorch_model.bin")
    assert "unet cannot be read" in refused(folder)


def test_a_scheduler_without_the_wanted_rungs(copy, refused):
    folder = copy("sdxl")
    DDPMScheduler(num_train_timesteps=3).save_pretrained(folder / "scheduler")
    said = refused(folder)
    assert "student_steps: must be at most that, the teacher's scheduler has 3 training timesteps, got 4" in said


def test_latent_channels_that_do_not_match(copy, refused):
    folder = copy("sdxl")
    vae = AutoencoderKL(latent_channels=8, block_out_channels=(8, 8), norm_num_groups=4,
                        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2)  # fmt: skip
    shutil.rmtree(folder / "vae")
    vae.save_pretrained(folder / "vae")
    said = refused(folder)
    assert "takes latents of 4 channels" in said and "autoencoder makes 8" in said


def test_student_and_teacher_of_different_class(refused, pipeline_folder):
    separate = ("model.roles=separate",)
    said = refused(pipeline_folder("sdxl"), *separate, f"model.student_from={pipeline_folder('wan')}")
    assert "student_from" in said and "WanTransformer3DModel" in said and "UNet2DConditionModel" in said


def test_student_and_teacher_of_different_size(refused, copy, pipeline_folder):
    folder = copy("sdxl")
    config = UNet2DConditionModel.load_config(folder / "unet")
    shutil.rmtree(folder / "unet")
    UNet2DConditionModel.from_config({**config, "layers_per_block": 2}).save_pretrained(folder / "unet")
    said = refused(pipeline_folder("sdxl"), "model.roles=separate", f"model.student_from={folder}")
    assert "does not fit" in said and "their configs must be the same" in said


def test_the_hub_offline(refused):
    said = refused("acme/none")
    assert "model.path: acme/none: model_index.json cannot be read: the hub does not give it (" in said
    assert "Check name, network and access" in said and "Retry" not in said, "one line, and nothing of the hub's own retries"


def test_a_tokenizer_without_its_vocabulary(copy, plugins):
    """transformers loads it, and every prompt would have the same embedding."""
    folder = copy("sdxl")
    for file in (folder / "tokenizer").iterdir():
        if file.name != "tokenizer_config.json":
            file.unlink()
    where = Pretrained(str(folder))
    with pytest.raises(InputError, match=r"tokenizer does not tell words apart|text encoders cannot be read"):
        where.text_parts(where.family(plugins.families()), torch.float32)


def test_a_single_file_and_an_address(refused, tmp_path):
    file = tmp_path / "sd_xl_base_1.0.safetensors"
    file.write_bytes(b"weights")
    assert "is a single file" in (said := refused(file)) and "from_single_file(FILE).save_pretrained(FOLDER)" in said
    assert "of an address on the hub, take owner/name" in refused("https://huggingface.co/stabilityai/sdxl")


@pytest.mark.parametrize("path", ["/nowhere/at/all", "./nothing", "a/b/c", "~/nothing"])
def test_what_is_neither_folder_nor_hub_id(refused, path):
    assert "neither a folder nor a hub id" in refused(path)


@pytest.mark.parametrize(
    ("family", "override", "said"),
    [
        ("sdxl", "model.pixels=[20, 16]", "pixels: must be multiples of"),
        ("sdxl", "model.frames=5", "frames: a StableDiffusionXLPipeline makes images, got 5"),
        ("dit", "model.pixels=[16, 16]", r"pixels: this transformer makes images of \[8, 8\] only"),
        ("wan", "model.pixels=[20, 16]", "pixels: must be multiples of"),
        ("sd3", "model.pixels=[18, 16]", "pixels: must be multiples of"),
        ("sd3", "model.text_length=7", "text_length: a StableDiffusion3Pipeline pads prompts"),
        ("sdxl", "model.lora.target_modules=[nothing]", "lora.target_modules: none of these layers is in a UNet2DCondition"),
        ("sdxl", "model.shift=3.0", "shift: is of flow-matching schedules"),
        ("sit", "model.transition=sde", "transition: this pipeline has no stock flow scheduler"),
    ],
)
def test_settings_a_pipeline_cannot_have(piped, plugins, tmp_path, family, override, said):
    from amd_plugin.host import run

    with pytest.raises(InputError, match=said):
        run.train(piped(family, override), plugins, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_class_prompt_that_is_none(piped, plugins, tmp_path):
    from amd_plugin.host import run

    prompts = tmp_path / "animals.txt"
    prompts.write_text("1\na red fox\n")
    with pytest.raises(InputError, match="a prompt for this model is a class number below 1000"):
        run.train(piped("dit", f"data.source={prompts}"), plugins, tmp_path / "run")


def test_variants_and_precision(tmp_path, plugins):
    """Weights saved as a variant are found under its name only, and frozen weights are kept in the precision asked for."""
    sdxl().to(torch.float16).save_pretrained(tmp_path / "half", variant="fp16")
    families = plugins.families()
    plain, variant = Pretrained(str(tmp_path / "half")), Pretrained(str(tmp_path / "half"), variant="fp16")
    family = variant.family(families)
    assert variant.network(family, torch.bfloat16).dtype == torch.bfloat16
    assert variant.autoencoder(family).dtype == torch.float32
    with pytest.raises(InputError, match=r"model.path: .*unet cannot be read"):
        plain.network(family, torch.float32)


def test_a_tiny_autoencoder_decodes_in_place_of_the_large_one(piped, plugins, tmp_path):
    AutoencoderTiny(
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1), latent_channels=4, upsampling_scaling_factor=2,
    ).save_pretrained(tmp_path / "tiny")  # fmt: skip
    recipe = piped("sdxl", f"model.decoder={tmp_path / 'tiny'}")
    found = load_backbone(recipe.config.model, _NoClasses(), 0, plugins.families())
    latents = torch.randn(2, *found.sample_shape, requires_grad=True)
    media = found.decode(latents)
    assert media.shape == (2, 3, 16, 16) and media.min() >= 0 and media.max() <= 1
    media.sum().backward()
    assert latents.grad.abs().sum() > 0, "decoding is differentiable when asked"


def test_weights_of_something_else_are_not_taken_for_random_ones(copy, plugins):
    """diffusers itself loads them, and leaves what is missing at random."""
    folder = copy("sdxl")
    weights = next((folder / "unet").glob("*.safetensors"))
    whole = load_file(weights)
    first = sorted(whole)[0]
    save_file({name: value for name, value in whole.items() if name != first}, weights)
    where = Pretrained(str(folder))
    with pytest.raises(InputError, match=f"weights of unet do not fit a UNet2DConditionModel.* first is {first}"):
        where.network(where.family(plugins.families()), torch.float32)
    save_file({**whole, first: torch.zeros(3, 2, 1)}, weights)
    with pytest.raises(InputError, match="unet"):
        where.network(where.family(plugins.families()), torch.float32)


class _NoClasses:
    name, num_classes, sample_shape, media_channels = "prompts", 0, (), 3


@pytest.mark.parametrize("family", BUILD)
def test_decoding_is_differentiable_and_media_come_back(family, piped, plugins):
    """Latents of encoded media decode to what the autoencoder makes of them, in [0, 1], with gradients to the latents."""
    config = piped(family).config.model
    found = load_backbone(config, _NoClasses(), 0, plugins.families())
    size = found.size
    frames = (size.frames,) if size.frames > 1 else ()
    media = torch.rand(2, 3, *frames, size.height, size.width) * 2 - 1
    with torch.no_grad():
        latents = found.encode(media)
    assert latents.shape == (2, *found.sample_shape)
    latents.requires_grad_(True)
    decoded = found.decode(latents)
    assert decoded.shape == media.shape and decoded.min() >= 0 and decoded.max() <= 1
    decoded.square().mean().backward()
    assert latents.grad.isfinite().all() and latents.grad.abs().sum() > 0
