"""Sizes that a model cannot make are refused by recipe check and dry run, with the line and what it can make."""

import re

import pytest
import torch
from diffusers import DiffusionPipeline

from amd_plugin.errors import InputError
from amd_plugin.models.backbone import load_backbone, meta_backbone
from tests.helpers.pipelines import wan


@pytest.mark.parametrize(
    ("family", "override", "said"),
    [
        ("wan", "model.frames=65", "model.frames: this transformer makes videos of up to 64 frames, got 65"),
        ("wan", "model.pixels=[16, 528]", "model.pixels: this transformer makes videos of up to [512, 512], got [16, 528]"),
        ("wan", "model.pixels=[24, 16]", "model.pixels: must be multiples of [16, 16], got [24, 16]"),
        ("wan", "model.frames=0", "model.frames: must be"),
        ("sd3", "model.pixels=[80, 16]", "model.pixels: this transformer makes images of up to [64, 64], got [80, 16]"),
        ("sd3", "model.pixels=[18, 16]", "model.pixels: must be multiples of the 4 of a patch, got [18, 16]"),
        ("sd3", "model.frames=5", "model.frames: a StableDiffusion3Pipeline makes images, got 5"),
        ("sdxl", "model.pixels=[20, 16]", "model.pixels: must be multiples of 8 for this UNet, got [20, 16]"),
        ("sdxl", "model.pixels=[0, 16]", "model.pixels.0: must be"),
        ("sdxl", "model.pixels=[-8, 16]", "model.pixels.0: must be"),
        ("dit", "model.pixels=[16, 16]", "model.pixels: this transformer makes images of [8, 8] only, got [16, 16]"),
    ],
)
def test_refused_by_the_recipe_check(family, override, said, piped):
    with pytest.raises(InputError) as caught:
        piped(family, override)
    assert said in str(caught.value) and "--set " + override in str(caught.value)


@pytest.mark.parametrize(
    ("family", "sizes"),
    [
        ("wan", ("model.frames=64",)),
        ("wan", ("model.pixels=[16, 512]", "model.frames=1")),
        ("sd3", ("model.pixels=[64, 16]",)),
        ("sdxl", ("model.pixels=[8, 40]",)),
    ],
)
def test_the_largest_and_oddest_sizes_are_made(family, sizes, piped, plugins):
    recipe = piped(family, *sizes)
    meta_backbone(recipe.config.model, recipe.task, 0, plugins.families())
    made = load_backbone(recipe.config.model, recipe.task, 0, plugins.families())
    made.conditions.prepare(["a red fox"], torch.device("cpu"))
    x = torch.randn(1, *made.sample_shape)
    with torch.no_grad():
        output = made.family.call(made.network, x, torch.tensor([500]), made.conditions(torch.zeros(1), lambda: ["a red fox"]))
        media = made.decode(x)
    assert output.shape == x.shape
    assert media.shape[-2:] == made.size[:2] and (family != "wan" or media.shape[2] == made.size.frames)


def test_a_card_asks_for_the_frames_that_were_trained(piped, plugins, tmp_path, monkeypatch):
    """Stock diffusers rounds up for an autoencoder that keeps all frames, as the one of moving_digits does."""
    from amd_plugin.host import run

    small = ("model.roles=shared_base", "model.dtype=bf16", "train.max_steps=1", "train.fake_updates=1")
    run.train(piped("wan", *small), plugins, tmp_path / "run")
    card = (tmp_path / "run" / "student" / "README.md").read_text()
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL).group(1)
    assert "num_frames=5" in code and "latents=torch.randn(1, 1, 5, 16, 16)" in code
    monkeypatch.chdir(tmp_path / "run" / "student")
    scope = {}
    exec(code, scope)
    assert len(scope["video"]) == 5
    assert (scope["pipeline"].vae.dtype, scope["pipeline"].transformer.dtype) == (torch.float32, torch.bfloat16)
    assert wan().vae.config.scale_factor_temporal == 1


def test_an_autoencoder_that_overflows_in_half_precision_decodes_and_is_exported_in_fp32(
    piped, plugins, pipeline_folder, tmp_path
):
    """As SDXL's does: rewards see finite pictures, and the exported folder has the weights as they were."""
    from safetensors.torch import load_file

    from amd_plugin.host import run

    pipeline = DiffusionPipeline.from_pretrained(pipeline_folder("sdxl"))
    with torch.no_grad():
        pipeline.vae.decoder.conv_in.weight.mul_(3e4)
        pipeline.vae.decoder.conv_in.bias.fill_(9e4)
    pipeline.save_pretrained(tmp_path / "overflows")
    recipe = piped(
        "sdxl", f"model.path={tmp_path / 'overflows'}", "model.dtype=fp16", "train.max_steps=1", "model.roles=shared_base"
    )
    made = load_backbone(recipe.config.model, recipe.task, 0, plugins.families())
    latents = torch.randn(2, *made.sample_shape).half()
    assert made.decode(latents).isfinite().all()
    run.train(recipe, plugins, tmp_path / "run")
    exported = load_file(next((tmp_path / "run" / "student" / "vae").glob("*.safetensors")))
    assert all(torch.equal(exported[name], value) for name, value in pipeline.vae.state_dict().items())
    assert not pipeline.vae.half().decode(latents).sample.isfinite().all()
