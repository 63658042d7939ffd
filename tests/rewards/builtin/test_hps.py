"""HPSv2's checkpoint format as `open_clip` itself writes it: the same embeddings."""

import subprocess
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from amd_plugin.rewards.builtin.hps import HPSv2Reward
from tests.rewards.tiny_networks import EDGE

REFERENCE = Path(__file__).with_name("open_clip_reference.py")
PROMPTS = ["a red apple", "two tall blue houses", "", "a red house " * 30]
MEAN, STD = torch.tensor([0.48145466, 0.4578275, 0.40821073]), torch.tensor([0.26862954, 0.26130258, 0.27577711])


def test_it_scores_as_open_clip_does(publishers, folder, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer(PROMPTS, padding="max_length", truncation=True, max_length=16, return_tensors="pt").input_ids
    media = torch.rand(4, 3, EDGE, EDGE, generator=torch.Generator().manual_seed(0))
    pixels = (media - MEAN[:, None, None]) / STD[:, None, None]
    given = {"pixels": pixels, "tokens": tokens, "vocabulary": torch.tensor(len(tokenizer))}
    save_file(given, tmp_path / "given.safetensors")
    done = subprocess.run([publishers, REFERENCE, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    expected = load_file(tmp_path / "expected.safetensors")["cosines"]
    assert expected.std() > 0.01
    scores = HPSv2Reward(str(tmp_path), processor=str(folder))(media, PROMPTS)
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-6)
