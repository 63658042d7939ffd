"""TRL's reward functions as rewards, and rewards as TRL's functions."""

import asyncio
import math
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from trl.rewards import get_repetition_penalty_reward, get_soft_overlong_punishment, think_format_reward

from amd_plugin.config import RewardConfig
from amd_plugin.errors import InputError
from amd_plugin.hookspecs import hookimpl
from amd_plugin.rewards.protocol import to_pil
from amd_plugin.rewards.reward_set import RewardSet
from amd_plugin.rewards.trl_functions import FromTRL, ToTRL, from_trl

PROMPTS = ["a red apple", "two tall blue houses", "a house"]
MEDIA = torch.rand(3, 3, 8, 6, generator=torch.Generator().manual_seed(0)).mul(255).round() / 255


def brightness(prompts, completions, **kwargs):
    return [float(np.asarray(image).mean() / 255) for image in completions]


def parity(completions, labels):
    assert all(isinstance(label, int) for label in labels)
    return [1.0 if label % 2 else None for label in labels]


async def later(prompts, completions):
    await asyncio.sleep(0.001)
    return [float(len(prompt)) for prompt in prompts]


def by_recipe(plugins, functions, media=MEDIA, **columns):
    class Mine:
        @hookimpl
        def distill_rewards(self):
            return {name: from_trl(function) for name, function in functions.items()}

    plugins.register(Mine(), "mine")
    return RewardSet([RewardConfig(name=name) for name in functions], plugins, task=None)(media, PROMPTS, **columns)


def test_functions_by_a_recipe(plugins):
    scores = by_recipe(plugins, {"brightness": brightness, "parity": parity, "later": later}, labels=torch.tensor([0, 1, 3]))
    torch.testing.assert_close(scores.each["brightness"], MEDIA.flatten(1).mean(1), rtol=1e-4, atol=1e-4)
    assert scores.each["parity"][0].isnan() and scores.each["parity"][1:].tolist() == [1.0, 1.0]
    assert scores.each["later"].tolist() == [float(len(prompt)) for prompt in PROMPTS]
    assert scores.total.isnan().tolist() == [True, False, False] and not scores.causes


def test_trls_own_functions():
    said = ["<think>\nyes\n</think>\nan apple", "an apple", "<think></think>"]
    messages = [[{"role": "assistant", "content": text}] for text in said]
    reward = FromTRL(think_format_reward)
    assert reward(MEDIA, PROMPTS, completions=messages).tolist() == think_format_reward(messages)
    assert reward(messages, PROMPTS).tolist() == [1.0, 0.0, 1.0]
    repeat = get_repetition_penalty_reward(2, -1.0)
    ids = [[1] * 4, [1] * 9, list(range(30))]
    assert FromTRL(repeat)(MEDIA, PROMPTS, completion_ids=ids).tolist() == pytest.approx(repeat(ids))
    punish = get_soft_overlong_punishment(max_completion_len=12, soft_punish_cache=6)
    assert FromTRL(punish)(MEDIA, PROMPTS, completion_ids=ids).tolist() == pytest.approx(punish(ids))


def test_completions_are_pictures_films_or_tensors():
    seen = []
    keep = lambda prompts, completions: seen.append(completions) or [0.0] * len(prompts)  # noqa: E731
    FromTRL(keep)(MEDIA, PROMPTS)
    FromTRL(keep)(MEDIA[:, :, None].expand(-1, -1, 4, -1, -1), PROMPTS)
    FromTRL(keep, completions="tensor")(MEDIA, PROMPTS)
    pictures, films, tensors = seen
    assert pictures[0].size == (6, 8) and [len(film) for film in films] == [4, 4, 4]
    assert films[0][0].tobytes() == pictures[0].tobytes() and torch.equal(tensors[1], MEDIA[1])


def test_what_is_wrong_with_a_function():
    for function, columns, message in (
        (lambda completions, solution: [], {"labels": [1]}, "needs the columns solution; the batch has labels"),
        (lambda completions: [1.0], {}, "one value per prompt, 3, got 1"),
        (lambda completions: 1.0, {}, "must return a list of numbers, got float"),
        (lambda completions: "abc", {}, "must return a list of numbers, got str"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            FromTRL(function)(MEDIA, PROMPTS, **columns)
    with pytest.raises(InputError, match="needs a function"):
        FromTRL("brightness")


def test_async_functions_inside_a_running_loop():
    async def outer():
        return FromTRL(later)(MEDIA, PROMPTS)

    assert asyncio.run(outer()).tolist() == [11.0, 20.0, 7.0]


class Mean:
    """A reward of ours that needs a column, and has no answer where that is negative."""

    def __call__(self, media, prompts, labels):
        value = media.flatten(1).mean(1) + labels + torch.tensor([len(p) for p in prompts])
        return torch.where(labels < 0, torch.nan, value)


def test_rewards_for_trl():
    function = ToTRL(Mean(), name="mean")
    assert function.__name__ == "mean" and ToTRL(Mean()).__name__ == "Mean"
    expected = [m + label + len(p) for m, label, p in zip(MEDIA.flatten(1).mean(1).tolist(), [1, 2, 3], PROMPTS, strict=True)]
    films = to_pil(MEDIA[:, :, None].expand(-1, -1, 4, -1, -1))
    talks = [[{"role": "assistant", "content": [{"type": "image", "image": image}]}] for image in to_pil(MEDIA)]
    asked = [[{"role": "user", "content": [{"type": "text", "text": prompt}]}] for prompt in PROMPTS]
    for prompts, completions in ((PROMPTS, to_pil(MEDIA)), (PROMPTS, list(MEDIA)), (PROMPTS, films), (asked, talks)):
        scores = function(
            prompts=prompts, completions=completions, labels=[1, 2, 3], completion_ids=[[1]] * 3, trainer_state=None
        )
        assert scores == pytest.approx(expected, abs=1e-5) and all(type(score) is float for score in scores)
    assert function(prompts=PROMPTS, completions=list(MEDIA), labels=[-1, 2, 3])[0] is None
    assert function(prompts=[], completions=[], labels=[]) == []
    again = pickle.loads(pickle.dumps(function))
    assert again(prompts=PROMPTS, completions=list(MEDIA), labels=[1, 2, 3]) == pytest.approx(expected, abs=1e-5)


def test_completions_of_several_sizes_keep_their_order():
    images = [Image.new("RGB", size, (level, level, level)) for level, size in ((0, (4, 4)), (51, (8, 4)), (102, (4, 4)))]
    scores = ToTRL(lambda media, prompts: media.flatten(1).mean(1))(prompts=PROMPTS, completions=images)
    assert scores == pytest.approx([0.0, 0.2, 0.4])


def test_there_and_back_again(build):
    reward = build("image_reward")
    both = FromTRL(ToTRL(reward), completions="tensor")
    media = torch.rand(3, 3, 40, 32)
    torch.testing.assert_close(both(media, PROMPTS), reward(media, PROMPTS))
    assert not math.isnan(both(media, PROMPTS).sum())


def test_what_trl_hands_that_is_no_picture():
    with pytest.raises(TypeError, match="completions must be PIL images, lists of them, or tensors, got str"):
        ToTRL(Mean())(prompts=["a"], completions=["text"], labels=[1])
