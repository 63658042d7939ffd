"""Scores of student samples: whatever a reward does, a turn goes on."""

import pytest
import torch

from amd_plugin.adapters.sample_scores import SampleScores

X0 = torch.rand(2, 3, 8, 8)


class Pictures:
    """A reward of PIL pictures, with an attribute that rewards of this package have too."""

    media, names = "pil", ("anything",)

    def __call__(self, media, prompts):
        return [picture.size[0] for picture in media]


def test_a_function_gets_the_media_that_it_says_it_takes():
    assert SampleScores(Pictures())(X0, ["a", "b"]).tolist() == [[8.0], [8.0]]


class OfVideos:
    media = "video"

    def __call__(self, media, prompts):
        return torch.zeros(2)


@pytest.mark.parametrize(
    "reward",
    [
        OfVideos(), lambda media, prompts: 1 / 0, lambda media, prompts: torch.zeros(3), lambda media, prompts: torch.zeros(2, 2),
        lambda media, prompts: None, lambda media, prompts: "good", lambda media, prompts: [None, float("nan")],
        lambda media: torch.zeros(2), lambda media, prompts: torch.full((2,), torch.inf),
    ],
)  # fmt: skip
def test_what_is_no_score_is_none(reward):
    scores = SampleScores(reward)(X0, None)
    assert scores.shape == (2, 1) and not scores.isfinite().any()
