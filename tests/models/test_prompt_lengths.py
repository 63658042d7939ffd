"""Prompts that are longer than the text encoders read are counted, and said once per run, with nothing per batch."""

import logging

import pytest
import torch
from diffusers.utils import logging as diffusers_logging

from amd_plugin.models.backbone import load_backbone
from amd_plugin.models.prompt_lengths import Beyond

CPU = torch.device("cpu")
LONG = " ".join(["a red fox"] * 30)


@pytest.fixture
def conditioned(piped, plugins, tmp_path, monkeypatch):
    monkeypatch.setenv("AMD_PLUGIN_CACHE", str(tmp_path / "cache"))

    def load(family, *overrides):
        recipe = piped(family, *overrides)
        return load_backbone(recipe.config.model, recipe.task, 0, plugins.families())

    return load


@pytest.mark.parametrize(
    ("family", "limits"),
    [("sdxl", {"tokenizer": 16, "tokenizer_2": 16}), ("wan", {"tokenizer": 8}), ("sd3", {"tokenizer": 16, "tokenizer_2": 16})],
)
def test_counted_where_they_are_embedded_and_where_they_are_found_on_disk(family, limits, conditioned, capfd):
    prompts = [LONG, "a blue boat", f"{LONG} tall", LONG]
    for _ in range(2):
        conditions = conditioned(family, "model.negative_prompt=''").conditions
        conditions.prepare(prompts, CPU)
        assert {name: (found.prompts, found.limit) for name, found in conditions.longer.items()} == {
            n: (2, x) for n, x in limits.items()
        }
        tokens = 93 if family != "wan" else 92  # 91 words; CLIP has a token at both ends
        assert conditions.longer["tokenizer"].tokens == tokens - limits["tokenizer"]
    said = capfd.readouterr()
    assert "endoftext" not in said.out + said.err and "truncated" not in said.out + said.err


def test_a_negative_prompt_counts_too(conditioned):
    conditions = conditioned("sdxl", f"model.negative_prompt={LONG}").conditions
    conditions.prepare(["a blue boat"], CPU)
    assert conditions.longer["tokenizer"] == Beyond(1, 92 - 16, 16)


def test_said_once_in_one_line_per_encoder(conditioned, caplog, capfd):
    from amd_plugin.models import prompt_lengths

    conditions = conditioned("sdxl", "model.keep_embeddings=false").conditions
    conditions.prepare([LONG], CPU)
    for _ in range(3):
        conditions(torch.zeros(2), lambda: [LONG, f"{LONG} tall"])
    lines = [record.getMessage() for record in caplog.records if record.name == prompt_lengths.__name__]
    assert (
        len(lines) == 2
        and "2 prompts are longer than the 16 tokens that the encoder of tokenizer reads, by up to 77" in lines[0]
    )
    said = capfd.readouterr()
    assert "endoftext" not in said.out + said.err


def test_a_librarys_warning_is_shown_once_per_run(caplog):
    from amd_plugin.host.running.library_warnings import once_per_run

    shown = []
    library, handler = diffusers_logging.get_logger("diffusers.pipelines.some"), logging.Handler()
    handler.emit = lambda record: shown.append(record.getMessage())
    logging.getLogger("diffusers").addHandler(handler)
    try:
        for _ in range(2):
            with once_per_run():
                for batch in range(3):
                    library.warning(f"batch {batch} was cut")
                library.error("something else")
    finally:
        logging.getLogger("diffusers").removeHandler(handler)
    assert shown == ["batch 0 was cut", "something else"] * 2
