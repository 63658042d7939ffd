"""What holds for every built-in reward with a network, and what they refuse."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertTokenizer, CLIPModel

from amd_plugin.config import RewardConfig
from amd_plugin.errors import InputError
from amd_plugin.rewards.builtin.video import motion
from amd_plugin.rewards.builtin.weights import check_words
from amd_plugin.rewards.protocol import LOGITS, present, resize, to_pil, traits
from amd_plugin.rewards.reward_set import RewardSet
from tests.rewards.tiny_networks import EDGE, write_image_reward

NAMES = ["clip", "pickscore", "hpsv2", "aesthetic", "image_reward", "video"]
PROMPTS = ["a red apple", "two tall blue houses", "", "a house"]


def noise(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", NAMES)
def test_scores_depend_on_the_sample_and_on_nothing_else(build, name):
    reward, media = build(name), noise(4, 3, 5, 40, 56)
    scores = reward(media, PROMPTS)
    assert scores.shape == (4,) and scores.dtype == torch.float32 and scores.isfinite().all()
    assert scores.std() > 1e-4
    assert torch.equal(reward(media, PROMPTS), scores)
    order = torch.tensor([2, 0, 3, 1])
    close = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(reward(media[order], [PROMPTS[i] for i in order]), scores[order], **close)
    torch.testing.assert_close(build(name, batch_size=3)(media, PROMPTS), scores, **close)
    alone = torch.cat([reward(media[i : i + 1], PROMPTS[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(alone, scores, **close)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_the_pixels_and_no_weight(build, name):
    reward, media = build(name), noise(2, 3, 40, 56).requires_grad_()
    assert traits(reward).differentiable and traits(reward).version
    reward(media, PROMPTS[:2]).sum().backward()
    assert media.grad.isfinite().all() and media.grad.flatten(1).abs().amax(1).gt(0).all()
    with torch.no_grad():
        assert not reward(media, PROMPTS[:2]).requires_grad
    networks = [module for module in vars(reward).values() if isinstance(module, torch.nn.Module)]
    assert not any(p.requires_grad for network in networks for p in network.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_odd_media(build, name):
    reward, image = build(name), noise(2, 1, EDGE, 3 * EDGE)
    grey = reward(image, PROMPTS[:2])
    torch.testing.assert_close(reward(image.expand(-1, 3, -1, -1), PROMPTS[:2]), grey)
    torch.testing.assert_close(reward(image[:, :, None], PROMPTS[:2]), grey)
    torch.testing.assert_close(reward(image.bfloat16(), PROMPTS[:2]), grey, rtol=0.05, atol=0.05)
    assert reward(noise(1, 3, 7, 5), ["a house"]).isfinite().all()
    for wrong in (noise(2, 4, EDGE, EDGE), noise(2, 3, EDGE), noise(2, 3, 0, EDGE, EDGE)):
        with pytest.raises(ValueError, match="media must be"):
            reward(wrong, PROMPTS[:2])
    with pytest.raises(ValueError, match="one prompt per sample, got 3 for 2"):
        reward(noise(2, 3, EDGE, EDGE), PROMPTS[:3])


@pytest.mark.parametrize("name", ["clip", "hpsv2", "aesthetic", "image_reward"])
def test_half_precision_by_a_recipe(build, options, plugins, name):
    config = RewardConfig(name=name, dtype="bf16", **options[name])
    media = noise(4, 3, EDGE, EDGE)
    scores = RewardSet([config], plugins, task=None)(media, PROMPTS, labels=torch.arange(4))
    assert not scores.causes
    torch.testing.assert_close(scores.total, build(name)(media, PROMPTS), rtol=0.2, atol=0.2)


def test_prompts_matter_where_they_should(build):
    media = noise(1, 3, EDGE, EDGE).expand(2, -1, -1, -1)
    for name in ("clip", "hpsv2", "image_reward"):
        one, other = build(name)(media, PROMPTS[:2])
        assert abs(one - other) > 1e-5, name
    one, other = build("aesthetic")(media, PROMPTS[:2])
    assert one == other


def test_hpsv2_is_the_cosine_of_the_model_its_checkpoint_was_written_from(build, folder):
    media, reward = noise(4, 3, EDGE, EDGE), build("hpsv2")
    tokens = reward.network.tokenizer(PROMPTS, padding="max_length", max_length=16, return_tensors="pt")
    mean, std = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
    pixels = (media - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    with torch.no_grad():
        model = CLIPModel.from_pretrained(folder).eval()
        logits = model(pixel_values=pixels, **tokens).logits_per_image.diagonal() / model.logit_scale.exp()
    torch.testing.assert_close(reward(media, PROMPTS), logits)


def test_hpsv2_looks_at_whole_pictures_and_clip_at_their_centre(build):
    wide = noise(1, 3, EDGE, 4 * EDGE)
    changed = torch.cat([1 - wide[..., :EDGE], wide[..., EDGE:]], -1)
    assert torch.equal(build("clip")(wide, ["a house"]), build("clip")(changed, ["a house"]))
    assert not torch.equal(build("hpsv2")(wide, ["a house"]), build("hpsv2")(changed, ["a house"]))
    assert resize(wide, EDGE, "pad").shape == resize(wide, EDGE, "crop").shape == (1, 3, EDGE, EDGE)


def test_weights_that_do_not_fit_are_refused(build, options, tmp_path):
    def changed(change):
        state = load_file(tmp_path / "ImageReward.safetensors")
        change(state)
        save_file(state, tmp_path / "changed.safetensors")
        return {"path": str(tmp_path / "changed.safetensors"), "tokenizer": str(tmp_path)}

    write_image_reward(tmp_path)
    name = "blip.text_encoder.encoder.layer.0.crossattention.self.key.weight"
    with pytest.raises(InputError, match=r"reward image_reward: the weights in .* 1 missing: encoder.layer.0.crossattention"):
        build("image_reward", **changed(lambda s: s.pop(name)))
    with pytest.raises(InputError, match=r"1 of another shape: .* \(48, 3\), needs \(48, 64\)"):
        build("image_reward", **changed(lambda s: s.update({name: torch.zeros(48, 3)})))
    with pytest.raises(InputError, match=r"2 unexpected, the first is extra\.0"):
        build("image_reward", **changed(lambda s: s.update({"extra.0": torch.zeros(1), "extra.1": torch.zeros(1)})))
    with pytest.raises(InputError, match=r"no ImageReward checkpoint: nothing is called blip\.visual_encoder"):
        build("image_reward", **changed(lambda s: [s.pop(k) for k in list(s) if "visual" in k]))
    (tmp_path / "med_config.json").write_text("{}")
    with pytest.raises(InputError, match=r"cannot be read as the text encoder's sizes: KeyError: 'vocab_size'"):
        build("image_reward", **changed(lambda s: None))
    with pytest.raises(InputError, match="takes embeddings of 768 numbers"):
        torch.save({"layers.0.weight": torch.zeros(1024, 768)}, tmp_path / "head.pth")
        build("aesthetic", path=str(tmp_path / "head.pth"))
    with pytest.raises(InputError, match=r"reward hpsv2: .* has none of the files"):
        (tmp_path / "empty").mkdir()
        build("hpsv2", path=str(tmp_path / "empty"))
    with pytest.raises(InputError, match="neither a file, a folder, nor a hub id"):
        build("hpsv2", path=str(tmp_path / "nowhere.pt"))


def test_files_that_need_pickle_are_refused(build, tmp_path):
    file = tmp_path / "evil.pt"
    torch.save({"layers.0.weight": pytest.approx(1)}, file)
    with pytest.raises(InputError, match="cannot be read as weights: UnpicklingError"):
        build("aesthetic", path=str(file))
    torch.save([1, 2], file)
    with pytest.raises(InputError, match="holds no mapping of names to tensors"):
        build("aesthetic", path=str(file))


def test_image_reward_from_torchs_own_format(build, tmp_path):
    write_image_reward(tmp_path, safetensors=False)
    media = noise(2, 3, EDGE, EDGE)
    ours = build("image_reward", path=str(tmp_path / "ImageReward.pt"), med_config=str(tmp_path / "med_config.json"))
    assert torch.equal(ours(media, PROMPTS[:2]), build("image_reward")(media, PROMPTS[:2]))


def test_a_clip_without_all_its_weights_is_refused(build, folder, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    state = load_file(tmp_path / "model.safetensors")
    state.pop("visual_projection.weight")
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"1 missing or of another shape: visual_projection.weight"):
        build("clip", path=str(tmp_path))


def test_tokenizers_that_know_no_words_are_refused(build, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # read when it is imported
    with pytest.raises(InputError, match=r"reward image_reward: .*tokenizer"):
        build("image_reward", tokenizer=str(tmp_path))
    with pytest.raises(InputError, match="of here does not tell"):
        check_words("x", BertTokenizer(), "here", "Fetch it again")
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cat", "dog"]))
    check_words("x", BertTokenizer(vocab=str(tmp_path / "vocab.txt")), "here", "a small vocabulary is none the worse for it")


def test_a_video_that_stands_still_does_not_win(build):
    moving = noise(4, 3, 6, 64, 64).roll(1, 2)
    for t in range(1, 6):
        moving[:, :, t] = moving[:, :, 0].roll(8 * t, -1)
    still = moving[:, :, :1].expand(-1, -1, 6, -1, -1)
    smooth = torch.nn.functional.interpolate(noise(4, 3, 6, 6), 64, mode="bilinear")
    drift = torch.stack([smooth.roll(6 * t, -1) for t in range(6)], 2)
    flicker = smooth[:, :, None] + 0.02 * torch.randn(4, 3, 6, 64, 64, generator=torch.Generator().manual_seed(1))
    assert (motion(drift) > 0.01).all() and (motion(still) == 0).all() and (motion(flicker) < 0.01).all()
    plain, reward = build("image_reward"), build("video", frames=6, weight=3.0)
    each = torch.stack([plain(still[:, :, 0], PROMPTS)] * 6).mean(0)
    torch.testing.assert_close(reward(still, PROMPTS), each - 3.0, rtol=1e-4, atol=1e-4)
    frames = torch.stack([plain(drift[:, :, t], PROMPTS) for t in range(6)], 1)
    torch.testing.assert_close(reward(drift, PROMPTS), frames.mean(1), rtol=1e-4, atol=1e-4)
    worst = build("video", frames=6, weight=3.0, reduce="min")(drift, PROMPTS)
    torch.testing.assert_close(worst, frames.amin(1), rtol=1e-4, atol=1e-4)


def test_what_the_video_reward_refuses(build):
    for reward, message in (
        ({"path": "x"}, "its reward needs a name"),
        ({"name": "clipp"}, "unknown reward 'clipp'. Did you mean 'clip'"),
        ({"name": "clip"}, "reward.path: Field required"),
        ({"name": "clip", "path": "x", "frame": 3}, "reward.frame: Extra inputs"),
    ):
        with pytest.raises(InputError, match=message):
            build("video", reward=reward)


def test_media_as_rewards_ask_for_them():
    media = noise(2, 1, 3, 8, 6)
    pictures = present(media, "pil")
    assert [len(frames) for frames in pictures] == [3, 3] and pictures[0][0].size == (6, 8)
    assert to_pil(noise(2, 3, 8, 6).bfloat16())[1].mode == "RGB"
    assert present(media, "video") is media and present(media, "any") is media
    with pytest.raises(ValueError, match="takes media of kind 'image', with 4 dimensions"):
        present(media, "image")

    class Odd:
        media = "sound"

    with pytest.raises(InputError, match="media must be one of image, video, any, pil, got 'sound'"):
        traits(Odd())


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), "1", True, None])
def test_a_unit_is_a_number(value):
    odd = type("Odd", (), {"unit": value})
    with pytest.raises(InputError, match="reward Odd: unit must be a number of at least 0, got"):
        traits(odd())


def test_built_in_rewards_in_logits_say_so(build):
    units = {name: traits(build(name)).unit for name in NAMES}
    assert {name for name, unit in units.items() if unit == LOGITS} == {"image_reward", "pickscore", "clip", "video"}
    assert units["hpsv2"] == LOGITS / 100, "its logits are a hundred cosines"
    assert traits(build("video", reward={"name": "random"})).unit == 12**-0.5
