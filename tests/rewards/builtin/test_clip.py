"""The CLIP reward against the stock processor and model, and what it refuses."""

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models
from transformers import CLIPImageProcessor, CLIPModel, CLIPProcessor, PreTrainedTokenizerFast

from amd_plugin.config import RewardConfig
from amd_plugin.errors import InputError
from amd_plugin.rewards.builtin.clip import ClipReward
from amd_plugin.rewards.reward_set import RewardSet
from tests.rewards.tiny_networks import EDGE

PROMPTS = ["a red apple", "two tall blue houses", "a red apple", "a house"]


def stock(folder, media):
    """Scores by CLIPProcessor and CLIPModel."""
    model = CLIPModel.from_pretrained(folder).eval()
    processor = CLIPProcessor.from_pretrained(folder)
    images = [Image.fromarray((image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)) for image in media]
    inputs = processor(text=PROMPTS, images=images, return_tensors="pt", padding="max_length", max_length=16)
    with torch.no_grad():
        return model(**inputs).logits_per_image.diagonal()


@pytest.mark.parametrize(("size", "tolerance"), [((EDGE, EDGE), 1e-4), ((80, 64), 2e-2), ((48, 96), 2e-2), ((20, 24), 2e-2)])
def test_it_agrees_with_the_stock_processor_and_model(folder, size, tolerance):
    media = torch.randint(256, (4, 3, *size), generator=torch.Generator().manual_seed(1)).float() / 255
    scores = ClipReward(str(folder), batch_size=3)(media, PROMPTS)
    assert scores.shape == (4,) and scores.dtype == torch.float32
    torch.testing.assert_close(scores, stock(folder, media), rtol=tolerance, atol=tolerance)


def test_a_video_is_the_mean_over_its_frames(folder):
    media = torch.rand(4, 3, 5, EDGE, EDGE, generator=torch.Generator().manual_seed(1))
    whole, reward = ClipReward(str(folder), frames=9)(media, PROMPTS), ClipReward(str(folder), frames=2)
    each = torch.stack([ClipReward(str(folder))(media[:, :, t], PROMPTS) for t in range(5)])
    torch.testing.assert_close(whole, each.mean(0))
    torch.testing.assert_close(reward(media, PROMPTS), each[[0, 4]].mean(0))


def test_grey_pictures_half_precision_and_a_recipe(folder, plugins):
    grey = torch.rand(4, 1, EDGE, EDGE)
    config = RewardConfig(name="clip", path=str(folder), dtype="bf16")
    scores = RewardSet([config], plugins, task=None)(grey, PROMPTS, labels=torch.arange(4))
    expected = ClipReward(str(folder))(grey.expand(-1, 3, -1, -1), PROMPTS)
    torch.testing.assert_close(scores.total, expected, rtol=0.1, atol=0.1)


def test_what_it_refuses(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # read when it is imported
    with pytest.raises(InputError, match=r"reward clip: .*/nowhere cannot be read as a CLIP model"):
        ClipReward(str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="reward clip: acme/none cannot be read"):
        ClipReward("acme/none")
    bare = tmp_path / "bare"
    CLIPModel.from_pretrained(folder).save_pretrained(bare)
    with pytest.raises(InputError, match="tokenizer"):
        ClipReward(str(bare))
    assert ClipReward(str(bare), processor=str(folder))(torch.rand(1, 3, EDGE, EDGE), ["a house"]).isfinite().all()
    broken = tmp_path / "broken"
    CLIPModel.from_pretrained(folder).save_pretrained(broken)
    CLIPImageProcessor.from_pretrained(folder).save_pretrained(broken)
    blind = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=blind, unk_token="<unk>").save_pretrained(broken)
    with pytest.raises(InputError, match="does not tell 'a red apple' from"):
        ClipReward(str(broken))
