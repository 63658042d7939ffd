"""Scenes as pictures: things lie apart, on the canvas, in their colours, as the prompt relates them."""

import pytest
import torch

from amd_plugin.randomness import generator
from amd_plugin.tasks.scenes.drawing import draw, holds, layouts
from amd_plugin.tasks.scenes.grammar import RELATIONS
from amd_plugin.tasks.scenes.sprites import sprites
from amd_plugin.tasks.scenes.task import Scenes


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_things_lie_on_the_canvas_and_never_touch(count):
    found = layouts(count, 24, (10, 12), 2)
    size = torch.tensor((10, 12))[found.size]
    assert len(size) > 1000
    assert (found.corner >= 0).all() and (found.corner + size[..., None] <= 24).all() and (found.corner % 2 == 0).all()
    for first in range(count):
        for second in range(first):
            low = torch.maximum(found.corner[:, first], found.corner[:, second])
            ends = found.corner + size[..., None]
            high = torch.minimum(ends[:, first], ends[:, second])
            assert (low >= high).any(1).all()


@pytest.mark.parametrize("relation", range(4))
def test_a_relation_holds_one_way_only(relation):
    first, second = layouts(2, 24, (10, 12), 2, relation).middle.unbind(1)
    opposite = RELATIONS.index(
        {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}[RELATIONS[relation]]
    )
    assert holds(relation, first, second).all()
    assert not holds(relation, second, first).any()
    assert holds(opposite, second, first).all()


def test_a_drawing_is_where_and_what_it_should_be():
    bank = sprites(("star",), ("red", "blue"), (10, 12))
    picture = draw(bank[0, :, 1][None], torch.tensor([[[0, 0], [12, 12]]]), 24)[0]
    red, blue = picture[:, 2:10, 4:8].flatten(1).mean(1), picture[:, 14:22, 16:20].flatten(1).mean(1)
    assert red[0] > red[2] + 0.4 and blue[2] > blue[0] + 0.4
    assert (picture[:, :12, 12:] == 1).all() and (picture[:, 12:, :12] == 1).all()


def test_pictures_are_the_same_for_the_same_key_and_show_every_kind():
    task = Scenes(objects=("dog", "tree", "moon"), colours=("pink", "cyan", "brown"), counts=(2,))
    one, two = (task.training_data(64, generator(3, "pictures")) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert one[0].shape == (64, 3, 24, 24)
    torch.testing.assert_close(task.to_media(one[0]), task.pictures(one[1], _after_labels(task, one[1])), rtol=0, atol=1e-6)


def _after_labels(task, labels):
    draws = generator(3, "pictures")
    assert torch.equal(task.draw_labels(0, 64, draws), labels)
    return draws


def test_an_evaluation_asks_for_each_kind_equally_often_and_always_the_same():
    task = Scenes()
    labels = task.balanced_labels(240)
    assert torch.equal(labels, task.balanced_labels(240)) and len(labels) == 240
    kinds = torch.tensor([prompt.kind for prompt in task._prompts])[labels]
    assert (kinds.bincount() == 40).all() and (kinds.diff() >= 0).all()
