"""An exported adapter is read whole by diffusers and by the programs that keep the names of a model's original code.

Names are held against tables made from the model classes and from diffusers' converters of original checkpoints, and files are
applied to networks by name, as those programs do.
"""

import json
from types import SimpleNamespace

import pytest
import torch
from accelerate import init_empty_weights
from diffusers import DiffusionPipeline, UNet2DConditionModel, WanTransformer3DModel
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from safetensors import safe_open
from safetensors.torch import load_file

from amd_plugin.config import LoraConfig
from amd_plugin.host import run
from amd_plugin.host.student.adapter_files import LORA_FILE, comfyui_file
from amd_plugin.host.student.export import export_run
from amd_plugin.host.student.sampler_settings import SamplerSettings
from amd_plugin.models.backbone import load_backbone
from amd_plugin.models.families.sd3 import SD3
from amd_plugin.models.families.sdxl import SDXL
from amd_plugin.models.families.wan import Wan
from amd_plugin.models.shipped_configs import FOLDER
from tests.helpers.pipelines import elsewhere

TARGETS = tuple(LoraConfig().target_modules)
COMFYUI = {"sdxl": "sdxl_4step_comfyui.safetensors", "wan": "wan21_1_3b_4step_comfyui.safetensors"}


def network(kind, folder, part):
    with init_empty_weights():
        return kind.from_config(kind.load_config(FOLDER / folder, subfolder=part))


def adapted(module, endings=TARGETS):
    """Names of the layers that an adapter with these `endings` has, in the network class itself."""
    return [name for name, _ in module.named_modules() if name.endswith(tuple(f".{ending}" for ending in endings))]


def layers(names, rank=2):
    return {f"{name}.{layer}.weight": torch.zeros(rank, 3) for name in names for layer in ("lora_A", "lora_B")}


def test_sdxl_names_are_those_of_its_unet_with_underscores():
    """ComfyUI and the webuis know every layer as lora_unet_ and diffusers' name of it (comfy/lora.py, model_lora_keys_unet)."""
    unet = network(UNet2DConditionModel, "sdxl", "unet")
    table = {"lora_unet_" + name.replace(".", "_") for name, module in unet.named_modules() if hasattr(module, "weight")}
    names = adapted(unet)
    made = SDXL({}, unet.config).adapter_elsewhere(layers(names)).layers
    assert len(names) == 700 and {key.split(".")[0] for key in made} <= table
    assert {key.partition(".")[2] for key in made} == {"lora_down.weight", "lora_up.weight", "alpha"}
    assert len(made) == 3 * len(names)
    assert all(value.item() == 2 and value.is_floating_point() for key, value in made.items() if key.endswith("alpha"))


@pytest.mark.parametrize("endings", [TARGETS, ("linear_1", "linear_2", "time_proj", "to_q"), ("proj_out",)])
def test_wan_names_are_those_that_its_original_checkpoints_have(endings):
    transformer = network(WanTransformer3DModel, "wan21_1_3b", "transformer")
    names = adapted(transformer, endings) or ["proj_out"]
    made = Wan({}, transformer.config).adapter_elsewhere(layers(names)).layers
    parts = {key.removeprefix("diffusion_model.").rsplit(".lora_", 1)[0] for key in made if ".lora_down." in key}
    assert all(key.startswith("diffusion_model.") for key in made) and len(made) == 3 * len(names)
    back = convert_wan_transformer_to_diffusers({f"{part}.weight": torch.zeros(1) for part in parts})
    assert {key.removesuffix(".weight") for key in back} == set(names)


def test_wan_blocks_spelt_out():
    """The modules of a block of the original code (wan/modules/model.py), under the prefix that ComfyUI expects."""
    transformer = network(WanTransformer3DModel, "wan21_1_3b", "transformer")
    made = (
        Wan({}, transformer.config)
        .adapter_elsewhere(layers(n for n in adapted(transformer) if n.startswith("blocks.7.")))
        .layers
    )
    spelt = [f"{attention}.{letter}" for attention in ("self_attn", "cross_attn") for letter in "qkvo"] + ["ffn.0", "ffn.2"]
    assert {key.removesuffix(".alpha") for key in made if key.endswith("alpha")} == {
        f"diffusion_model.blocks.7.{s}" for s in spelt
    }


def test_comfyui_reads_diffusers_names_of_sd3():
    assert SD3({}, {}).adapter_elsewhere({}).layers is None


@pytest.fixture(scope="module")
def made():
    """Runs by family: a tiny one takes seconds, and all tests here look at the same files."""
    return {}


@pytest.fixture
def exported(made, piped, plugins, tmp_path_factory):
    """``exported("sdxl")``: (the run's folder, folder of its adapter alone)."""

    def export(family):
        if family not in made:
            folder = tmp_path_factory.mktemp(family)
            more = ("model.shift=8.0",) if family == "wan" else ()
            targets = f"model.lora.target_modules={list(TARGETS)}"
            small = ("model.roles=shared_base", targets, "model.lora.rank=4", "train.fake_updates=1", *more)
            run.train(piped(family, *small), plugins, folder / "run")
            made[family] = folder / "run", export_run(folder / "run", plugins, folder / "adapter", how="lora")
        return made[family]

    return export


def deltas(file):
    """Change of weight by kohya's rule, up @ down * alpha / rank, by the name of the layer."""
    tensors = load_file(file)
    names = {key.removesuffix(".alpha") for key in tensors if key.endswith(".alpha")}
    used = {f"{name}.{end}" for name in names for end in ("alpha", "lora_up.weight", "lora_down.weight")}
    assert used == set(tensors), "a loader would leave some out"
    pairs = {
        name: (tensors[f"{name}.lora_up.weight"], tensors[f"{name}.lora_down.weight"], tensors[f"{name}.alpha"])
        for name in names
    }
    return {name: up @ down * alpha / len(down) for name, (up, down, alpha) in pairs.items()}


def test_applied_by_name_it_makes_the_exported_unet(exported, pipeline_folder):
    folder, adapter = exported("sdxl")
    base, student = (
        DiffusionPipeline.from_pretrained(f).unet.state_dict() for f in (pipeline_folder("sdxl"), folder / "student")
    )
    change = deltas(adapter / COMFYUI["sdxl"])
    for name, weight in base.items():
        known = "lora_unet_" + name.removesuffix(".weight").replace(".", "_")
        torch.testing.assert_close(weight + change.pop(known, 0), student[name], atol=1e-6, rtol=1e-5)
    assert not change, "names that the network does not have"
    assert any(not torch.equal(base[name], student[name]) for name in base)


def test_applied_by_name_it_makes_the_exported_transformer(exported, pipeline_folder):
    folder, adapter = exported("wan")
    base, student = (
        DiffusionPipeline.from_pretrained(f).transformer.state_dict() for f in (pipeline_folder("wan"), folder / "student")
    )
    change = convert_wan_transformer_to_diffusers(
        {f"{name.removeprefix('diffusion_model.')}.weight": value for name, value in deltas(adapter / COMFYUI["wan"]).items()}
    )
    for name, weight in base.items():
        torch.testing.assert_close(weight + change.pop(name, 0), student[name], atol=1e-6, rtol=1e-5)
    assert not change, "names that the network does not have"


@pytest.mark.parametrize("family", ["sdxl", "wan", "sd3"])
def test_every_file_loads_in_diffusers_and_makes_the_same_picture(family, exported, tmp_path, pipeline_folder):
    folder, adapter = exported(family)
    files = sorted(path.name for path in adapter.glob("*.safetensors"))
    assert files == sorted({LORA_FILE, COMFYUI.get(family, LORA_FILE)})
    extra = {"height": 16, "width": 16, "num_frames": 5, "max_sequence_length": 8} if family == "wan" else {}
    pictures = elsewhere(
        f"""
        import json, torch
        from diffusers import DiffusionPipeline
        full = DiffusionPipeline.from_pretrained({str(folder / "student")!r})
        def sample(file=None):
            pipeline = full
            if file:
                pipeline = DiffusionPipeline.from_pretrained({str(pipeline_folder(family))!r}, scheduler=full.scheduler)
                pipeline.load_lora_weights({str(adapter)!r}, weight_name=file)
            torch.manual_seed(0)
            made = pipeline("a red fox", guidance_scale=1.0, num_inference_steps=4, output_type="latent", **{extra!r})
            return (made.frames if hasattr(made, "frames") else made.images).flatten().tolist()
        print(json.dumps([sample(), *(sample(file) for file in {files!r})]))
        """,
        cwd=tmp_path,
    )
    for picture in pictures[1:]:
        torch.testing.assert_close(torch.tensor(picture), torch.tensor(pictures[0]), rtol=1e-4, atol=1e-4)


def test_the_same_student_is_the_same_file_to_the_bit(exported, plugins, tmp_path):
    folder, adapter = exported("sdxl")
    again = export_run(folder, plugins, tmp_path / "again", how="lora")
    files = sorted(path.name for path in adapter.glob("*.safetensors"))
    assert len(files) == 2 and all((again / name).read_bytes() == (adapter / name).read_bytes() for name in files)


def test_the_adapter_of_a_pipeline_cannot_be_applied_twice(exported):
    folder, _ = exported("sdxl")
    pipeline = DiffusionPipeline.from_pretrained(folder / "student")
    with pytest.raises(OSError, match=r"pytorch_lora_weights"):
        pipeline.load_lora_weights(folder / "student")
    assert "would apply it twice" in (folder / "student" / "README.md").read_text()
    assert (folder / "student" / "lora" / LORA_FILE).is_file() and (folder / "student" / "lora" / "README.md").is_file()


@pytest.mark.parametrize(
    ("family", "says"),
    [
        ("sdxl", ["999, 759, 499, 259", "ModelSamplingDiscrete with sampling lcm", "sampler `lcm`", "sampler LCM"]),
        ("wan", ["1000, 960, 888.9, 727.3", "ModelSamplingSD3 with shift 8", "sampler `lcm`"]),
    ],
)
def test_card_and_metadata_say_what_goes_where_and_how_to_sample(family, says, exported):
    _, adapter = exported(family)
    card = (adapter / "README.md").read_text()
    for text in (*says, LORA_FILE, COMFYUI[family], "models/loras", "CFG 1.0", "scheduler `simple`"):
        assert text in card, text
    for file in (LORA_FILE, COMFYUI[family]):
        with safe_open(adapter / file, "pt") as opened:
            about = opened.metadata()
        wanted = {"ss_network_dim": "4", "ss_network_alpha": "4", "rank": "4", "alpha": "4", "recommended_steps": "4",
                  "recommended_guidance_scale": "1.0", "modelspec.sai_model_spec": "1.0.1"}  # fmt: skip
        assert wanted.items() <= about.items() and about["base_model"] and about["recommended_scheduler"]
        assert [f"{t}" for t in json.loads(about["recommended_timesteps"])] == says[0].split(", ")
        assert about["ss_base_model_version"] == {"sdxl": "sdxl_base_v1-0", "wan": "wan2.1"}[family]


@pytest.mark.parametrize(
    ("family", "more", "trained", "visited", "sampler"),
    [
        ("sdxl", ("model.transition=ode",), [999, 749, 499, 249], [999, 749, 499, 249], "euler"),
        ("sdxl", ("model.student_steps=2",), [999, 499], [999, 499], "lcm"),
        ("sdxl_v", (), [999, 759, 499, 259], [999, 749, 499, 249], "lcm"),
        ("wan", ("model.shift=5.0", "model.student_steps=3"), [1000, 909.1, 714.3], [1000, 909.2, 714.9], "lcm"),
    ],
)
def test_settings_show_the_timesteps_that_comfyui_visits(family, more, trained, visited, sampler, piped, plugins):
    """Its schedule `simple` takes the entries -1 - int(k * length / steps) of a table of noise levels (comfy/samplers.py)."""
    recipe = piped(family, *more)
    backbone = load_backbone(recipe.config.model, recipe.task, 0, plugins.families())
    settings = SamplerSettings(backbone, recipe.config.model)
    assert (settings.timesteps, settings.elsewhere, settings.sampler) == (trained, visited, sampler)
    assert settings.exact == (family != "sdxl_v")


@pytest.mark.parametrize("name", ["/home/me/x", "../../x", "..", "\0x", "a\nb", "é" * 200, "\ud800"])
def test_a_strangers_name_of_a_recipe_is_a_name_in_the_folder(name, tmp_path):
    """Of run.json, or of state.json where that one is lost."""
    file = tmp_path / comfyui_file(SimpleNamespace(name=name))
    file.touch()
    assert [*tmp_path.iterdir()] == [file]
    assert comfyui_file(SimpleNamespace(name="sdxl 4.1")) == "sdxl 4.1_comfyui.safetensors"
