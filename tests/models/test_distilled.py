"""A few-step student as the teacher is refused, by every sign that it carries, unless it is meant."""

import json
import shutil

import pytest
import torch
from diffusers import EulerAncestralDiscreteScheduler, FlowMatchEulerDiscreteScheduler, LCMScheduler, TCDScheduler
from safetensors.torch import save_file

from amd_plugin.errors import InputError
from amd_plugin.models.distilled import NAMES
from amd_plugin.models.families.sdxl import SDXL


@pytest.fixture
def looks_like(pipeline_folder, tmp_path):
    """A copy of a tiny pipeline, to be made to look like a student."""
    return lambda family, name="base": shutil.copytree(pipeline_folder(family), tmp_path / "models" / name)


def noted(folder, key, value):
    index = json.loads((folder / "unet" / "config.json").read_text())
    (folder / "unet" / "config.json").write_text(json.dumps({**index, key: value}))


@pytest.mark.parametrize(
    ("family", "name", "make", "sign"),
    [
        ("sdxl", "base", lambda f: LCMScheduler().save_pretrained(f / "scheduler"), "its scheduler is a LCMScheduler"),
        ("sdxl", "base", lambda f: TCDScheduler().save_pretrained(f / "scheduler"), "its scheduler is a TCDScheduler"),
        (
            "sdxl", "base", lambda f: EulerAncestralDiscreteScheduler(timestep_spacing="trailing").save_pretrained(f / "scheduler"),
            "trailing steps, as those of Turbo",
        ),
        (
            "wan", "base", lambda f: FlowMatchEulerDiscreteScheduler(stochastic_sampling=True).save_pretrained(f / "scheduler"),
            "adds noise in every step",
        ),
        (
            "sd3", "base", lambda f: FlowMatchEulerDiscreteScheduler(shift_terminal=0.4).save_pretrained(f / "scheduler"),
            "ends its steps early",
        ),
        ("sdxl", "base", lambda f: (f / "README.md").write_text("# a student\n\nDistilled with `amd-plugin`, objective"), "amd-plugin distilled it"),
        ("sdxl", "base", lambda f: (f / "README.md").write_text("---\ntags: [art, lcm]\n---\n# x"), "its card has the tag lcm"),
        ("sdxl", "sdxl-turbo", lambda f: None, "'turbo' is in its name"),
        ("sdxl", "base", lambda f: noted(f, "_name_or_path", "acme/SDXL-Lightning"), "'Lightning' is in its name"),
    ],
)  # fmt: skip
def test_refused_by_each_sign_and_taken_when_it_is_meant(family, name, make, sign, looks_like, piped):
    folder = looks_like(family, name)
    change = make(folder)
    assert change is None or change is not False
    if (index := json.loads((folder / "model_index.json").read_text())) and (folder / "scheduler").is_dir():
        kind = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())["_class_name"]
        (folder / "model_index.json").write_text(json.dumps({**index, "scheduler": ["diffusers", kind]}))
    with pytest.raises(InputError) as caught:
        piped(family, f"model.path={folder}")
    said = str(caught.value)
    assert sign in said and "model.student_from" in said and "model.distilled_teacher" in said and "model.path" in said
    piped(family, f"model.path={folder}", "model.distilled_teacher=true")
    piped(family, f"model.student_from={folder}", "model.roles=separate")


@pytest.mark.parametrize("name", ["SDXL-Turbo", "sdxl-lightning", "LCM_Dreamshaper", "FastWan2.1-T2V", "Wan2.1-4steps", "sdxl_4step", "x-dmd2",
                                  "Hyper-SD", "Wan2.1-T2V-14B-StepDistill", "self-forcing"])  # fmt: skip
def test_names_of_students(name):
    assert NAMES.search(name), name


@pytest.mark.parametrize("name", ["stable-diffusion-xl-base-1.0", "Wan2.1-T2V-1.3B-Diffusers", "hyperrealism-xl", "step-video", "turbocharged",
                                  "stable-diffusion-3.5-large", "playground-v2.5", "wan0", "sd30"])  # fmt: skip
def test_names_of_others(name):
    assert not NAMES.search(name), name


def test_a_few_step_lora_as_the_teachers(piped, tmp_path):
    layers = {
        f"mid_block.attentions.0.transformer_blocks.0.attn1.to_q.{layer}.weight": torch.zeros(2, 32)
        for layer in ("lora_A", "lora_B")
    }
    tensors = SDXL({"_": 0}, {"addition_embed_type": "text_time"}).adapter_elsewhere(layers).layers
    for name, about, sign in (
        ("mine", {"recommended_steps": "4"}, "recommends 4 steps"),
        ("lcm-lora", {}, "'lcm' is in its name"),
    ):
        save_file(tensors, tmp_path / f"{name}.safetensors", metadata=about)
        with pytest.raises(InputError, match=r"model\.teacher_lora") as caught:
            piped("sdxl", f"model.teacher_lora={tmp_path / name}.safetensors")
        assert sign in str(caught.value) and "model.student_lora" in str(caught.value)
