"""Embedded prompts: what the pipelines themselves would use, made once, by one process, and then without text encoders."""

import gc
import os
import weakref
from types import SimpleNamespace

import diffusers
import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file

from amd_plugin.errors import InputError
from amd_plugin.models.backbone import load_backbone
from amd_plugin.models.conditions import EmbeddingFiles, PromptConditions
from amd_plugin.models.pretrained import Pretrained
from amd_plugin.tasks import TASKS

FAMILIES = ("sdxl", "wan", "sd3", "dit")
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("AMD_PLUGIN_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def loaded(monkeypatch):
    """The pipelines whose text encoders are read from now on, weakly."""
    seen = []
    original = Pretrained.text_parts

    def text_parts(self, family, dtype):
        pipeline = original(self, family, dtype)
        seen.append([weakref.ref(part) for part in pipeline.components.values() if isinstance(part, torch.nn.Module)])
        return pipeline

    monkeypatch.setattr(Pretrained, "text_parts", text_parts)
    return seen


@pytest.fixture
def conditioned(piped, plugins):
    """``conditioned("sdxl", "a.b=c", ...)``: (conditions, backbone, some prompts) of a pipeline on disk."""

    def load(family, *overrides):
        config = piped(family, *overrides).config
        made = load_backbone(config.model, TASKS["prompts"](**config.data.options), 0, plugins.families())
        return made.conditions, made, ["2", "0"] if family == "dit" else ["a red fox", "a blue boat"]

    return load


def of(conditions, prompts):
    return conditions(torch.arange(len(prompts)), lambda: prompts)


@pytest.mark.parametrize("family", FAMILIES)
def test_embeddings_are_those_the_pipeline_samples_with(family, conditioned, pipeline_folder):
    conditions, made, prompts = conditioned(family)
    conditions.prepare(prompts, CPU)
    ours = of(conditions, prompts[:1])
    pipeline = DiffusionPipeline.from_pretrained(pipeline_folder(family))
    pipeline.set_progress_bar_config(disable=True)
    seen = {}
    network = getattr(pipeline, made.family.component)
    network.register_forward_pre_hook(
        lambda module, args, kwargs: seen.update({**kwargs, **(kwargs.get("added_cond_kwargs") or {})}), with_kwargs=True
    )
    pipeline(**made.family.sampling(prompts[0], made.size), num_inference_steps=1, output_type="latent")
    assert ours
    for name, value in ours.items():
        torch.testing.assert_close(
            value, seen[name][:1], rtol=1e-5, atol=1e-6, check_dtype=False, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_a_second_run_reads_no_text_encoder_and_gets_the_same(family, conditioned, loaded):
    conditions, _, prompts = conditioned(family)
    conditions.prepare(prompts, CPU)
    gc.collect()
    assert len(loaded) == 1
    assert all(part() is None for part in loaded[0]), "text encoders are still in memory"
    first, uncond = of(conditions, [*prompts, prompts[0]]), conditions.uncond(torch.zeros(2))
    again, _, _ = conditioned(family)
    again.prepare(prompts, CPU)
    second = of(again, [*prompts, prompts[0]])
    assert len(loaded) == 1
    held, _, _ = conditioned(family, "model.keep_embeddings=false")
    held.prepare(prompts, CPU)
    third = of(held, [*prompts, prompts[0]])
    assert len(loaded) == 2
    for name, value in first.items():
        assert torch.equal(value, second[name]) and torch.equal(value[0], value[2])
        torch.testing.assert_close(value, third[name])
        torch.testing.assert_close(uncond[name], held.uncond(torch.zeros(2))[name])


def test_whatever_embeddings_depend_on_gives_others(conditioned, monkeypatch):
    """Folders differ by encoder, dtype, length and versions; a negative prompt has a file of its own."""
    folders = [
        conditioned(family, *more)[0].files.folder
        for family, more in (
            ("sdxl", ()), ("sdxl_v", ()), ("wan", ()), ("sdxl", ("model.dtype=bf16",)), ("sdxl", ("model.pixels=[32, 32]",)),
            ("wan", ("model.text_length=6",)),
        )
    ]  # fmt: skip
    monkeypatch.setattr(diffusers, "__version__", "0.0.1")
    folders.append(conditioned("sdxl")[0].files.folder)
    assert len(set(folders)) == len(folders)
    plain, negative = (conditioned("wan", *more)[0] for more in ((), ("model.negative_prompt=a tall house",)))
    assert not torch.equal(*(c.uncond(torch.zeros(1))["encoder_hidden_states"] for c in (plain, negative)))
    assert torch.equal(
        of(negative, ["a tall house"])["encoder_hidden_states"], negative.uncond(torch.zeros(1))["encoder_hidden_states"]
    )


@pytest.mark.parametrize("broken", [b"", b"\x08\0\0\0\0\0\0\0{", None, "a bit"])
def test_a_file_that_was_cut_short_or_has_changed_is_made_again(broken, conditioned):
    conditions, _, prompts = conditioned("sdxl")
    conditions.prepare(prompts, CPU)
    before = of(conditions, prompts)
    path = conditions.files.path(prompts[0])
    content = path.read_bytes()
    flipped = content[:-3] + bytes([content[-3] ^ 4]) + content[-2:]
    path.write_bytes({None: content[:-8], "a bit": flipped}.get(broken, broken))
    after = of(conditions, prompts)
    for name in before:  # a prompt embedded alone differs in the last bits from one in a batch
        torch.testing.assert_close(before[name], after[name], rtol=1e-5, atol=1e-6)
    assert load_file(path).keys() == before.keys()


def test_a_pipe_is_not_waited_for_and_a_damaged_note_is_told(caplog):
    files = EmbeddingFiles({})
    files.write(["a fox"], {"embeds": torch.ones(1, 2)})
    assert files.read("a fox") is not None and files.noted_longer("a fox") == {}
    path = files.path("a fox")
    path.unlink()
    os.mkfifo(path)
    path.with_suffix(".longer.json").write_text("[1]")
    assert files.read("a fox") is None and files.noted_longer("a fox") == {}
    assert "longer.json: cannot be read: Input should be an object" in caplog.text


def test_a_cache_that_cannot_be_written_names_the_variable(conditioned, tmp_path):
    conditions, _, prompts = conditioned("sdxl")
    conditions.files.folder.parent.mkdir(parents=True, exist_ok=True)
    conditions.files.folder.write_text("a file where the folder should be")
    with pytest.raises(InputError, match=r"cannot be written.*AMD_PLUGIN_CACHE"):
        conditions.prepare(prompts, CPU)


def test_a_cache_of_somebody_else_is_done_without(conditioned, tmp_path, monkeypatch, caplog):
    conditions, _, prompts = conditioned("sdxl")
    closed, access = conditions.files.folder, os.access
    closed.mkdir(parents=True)
    monkeypatch.setattr(os, "access", lambda path, mode: path != closed and access(path, mode))  # root may enter any
    conditions, _, _ = conditioned("sdxl")
    conditions.prepare(prompts, CPU, 1, 2)
    assert "it is somebody else's; prompts are embedded for this process alone" in caplog.text
    assert list(closed.iterdir()) == [] and all(conditions.files.path(prompt).is_file() for prompt in prompts)


@pytest.mark.parametrize("other_starts_after", [0, 1, 50, 99])
def test_processes_share_prompts_whenever_each_looks(other_starts_after, tmp_path):
    """One is part of the way when the other begins and finishes: nobody's prompt is left out, or embedded twice."""
    embedded = []

    def encode(pipeline, prompts, negative):
        embedded.extend(prompts if negative is None else [])
        return {"x": torch.tensor([[len(prompt)] for prompt in prompts])}

    one, other = (PromptConditions(lambda: SimpleNamespace(components={}), encode, "", {"of": "both"}) for _ in range(2))
    prompts = [f"p{index}" for index in range(100)] * 2

    def slowly():
        for index, prompt in enumerate(prompts):
            if index == other_starts_after:
                other.prepare(prompts, CPU, 1, 2)
            yield prompt

    one.prepare(slowly(), CPU, 0, 2)
    assert sorted(embedded) == sorted(set(prompts))
    assert all(one.files.path(prompt).is_file() for prompt in prompts)


@pytest.mark.parametrize("family", ("sdxl", "wan"))
def test_an_embedding_does_not_depend_on_the_prompts_that_were_missing_with_it(family, conditioned, tmp_path, monkeypatch):
    alone, among = [], []
    for made, batch in ((alone, ["a red fox"]), (among, ["a blue boat", "a red fox", "a fox"])):
        monkeypatch.setenv("AMD_PLUGIN_CACHE", str(tmp_path / str(len(batch))))
        conditions, _, _ = conditioned(family)
        conditions.prepare(batch, CPU)
        made.append(conditions.files.read("a red fox"))
    assert alone[0].keys() == among[0].keys() and all(torch.equal(alone[0][name], among[0][name]) for name in alone[0])
