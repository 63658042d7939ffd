"""ImageReward: bit for bit what the `image-reward` package computes, and what it refuses."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import BertTokenizer

from amd_plugin.rewards.builtin.image_reward import ImageReward

REFERENCE = Path(__file__).with_name("image_reward_reference.py")
PROMPTS = ["a red apple", "two tall blue houses", "", "a red house " * 30]
# The released size takes minutes on a busy machine, and differs in nothing but numbers.
SCALES = ["tiny", "released"] if os.environ.get("AMD_PLUGIN_TEST_RELEASED_SIZE") else ["tiny"]
SIZES = [(224, 224), (300, 231), (97, 260), (64, 64)]


def write_tokenizer(folder):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "apple", "two", "tall", "blue", "house", "##s"]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizer(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    return len(words) + 2  # [DEC] and [ENC]


def write_config(folder, vocabulary, **sizes):
    config = {
        "architectures": ["BertModel"], "attention_probs_dropout_prob": 0.1, "hidden_act": "gelu", "hidden_dropout_prob": 0.1,
        "hidden_size": 768, "initializer_range": 0.02, "intermediate_size": 96, "layer_norm_eps": 1e-12,
        "max_position_embeddings": 512, "model_type": "bert", "num_attention_heads": 12, "num_hidden_layers": 2, "pad_token_id": 0,
        "type_vocab_size": 2, "vocab_size": vocabulary, "encoder_width": 768, "add_cross_attention": True, **sizes,
    }  # fmt: skip
    (folder / "med_config.json").write_text(json.dumps(config))


@pytest.fixture(scope="module", params=SCALES)
def scored(request, publishers, tmp_path_factory):
    """A folder with a checkpoint of random weights, pictures, and the package's scores of them."""
    folder = tmp_path_factory.mktemp(request.param)
    write_config(folder, write_tokenizer(folder))
    random = np.random.default_rng(0)
    for i, (height, width) in enumerate(SIZES):
        blocks = random.integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), dtype=np.uint8)
        Image.fromarray(blocks).resize((width, height), Image.BICUBIC).save(folder / f"{i}.png")
    pixels = torch.randn(len(PROMPTS), 3, 224, 224, generator=torch.Generator().manual_seed(0))
    save_file({"pixels": pixels}, folder / "given.safetensors")
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    done = subprocess.run([publishers, REFERENCE, folder, request.param], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_it_is_the_package_bit_for_bit(scored):
    expected, reward = load_file(scored / "expected.safetensors"), ImageReward(str(scored), tokenizer=str(scored))
    pixels = load_file(scored / "given.safetensors")["pixels"].requires_grad_()
    tokens = reward.tokenizer(PROMPTS, padding="max_length", truncation=True, max_length=35, return_tensors="pt")
    scores = reward.network(pixels, tokens.input_ids, tokens.attention_mask)
    scores.sum().backward()
    assert expected["scores"].std() > 0.01, "the scores depend on nothing, and agree on nothing"
    assert torch.equal(scores, expected["scores"])
    assert torch.equal(pixels.grad, expected["gradient"])


def test_whole_pictures_agree_up_to_the_packages_rounding_to_bytes(scored):
    expected, reward = load_file(scored / "expected.safetensors"), ImageReward(str(scored), tokenizer=str(scored))
    media = [
        torch.from_numpy(np.array(Image.open(scored / f"{i}.png"))).permute(2, 0, 1)[None] / 255 for i in range(len(PROMPTS))
    ]
    scores = torch.cat([reward(image, [prompt]) for image, prompt in zip(media, PROMPTS, strict=True)])
    assert abs(scores[0] - expected["whole"][0]) < 1e-5  # 224 x 224 is not resized, and so not rounded
    assert (scores - expected["whole"]).abs().max() < 0.05 * expected["scores"].std()
