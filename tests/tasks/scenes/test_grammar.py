"""The prompts of scenes: how many there are, what they say, and what they ask for."""

from collections import Counter

import pytest

from amd_plugin.errors import InputError, OptionError
from amd_plugin.tasks.scenes.grammar import COLOURS, KINDS, OBJECTS, RELATIONS, prompts
from amd_plugin.tasks.scenes.task import Scenes


def test_every_prompt_once_and_each_kind_as_often_as_it_can_be_said():
    made = prompts(list(OBJECTS)[:4], list(COLOURS)[:3], (2, 3))
    assert len({prompt.text for prompt in made}) == len(made)
    counts = Counter(KINDS[prompt.kind] for prompt in made)
    assert counts == {"single": 4, "two": 12, "counting": 8, "colours": 12, "position": 48, "attribution": 72}


def test_words_follow_english():
    texts = {prompt.text for prompt in prompts(["apple", "fish", "bus", "butterfly"], ["orange", "red"], (2, 4))}
    assert {"an apple", "a fish", "two fish", "four buses", "two butterflies", "an orange fish", "a red apple"} <= texts
    assert "an apple and an orange bus" not in texts, "both things of an attribution have a colour"


def test_a_prompt_asks_for_what_it_says():
    objects, colours = ["key", "star", "cat"], ["red", "blue", "gray"]
    for prompt in prompts(objects, colours, (2, 3, 4)):
        named = [word for word in prompt.text.split() if word in objects]
        if KINDS[prompt.kind] != "counting":
            assert named == [objects[thing.object] for thing in prompt.things]
            assert [w for w in prompt.text.split() if w in colours] == [
                colours[thing.colour] for thing in prompt.things if thing.colour is not None
            ]
        assert (prompt.relation is None) or RELATIONS[prompt.relation] in prompt.text


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("data.objects=[dog,cat]", "at least 3"),
        ("data.objects=[dog,cat,aple]", "Did you mean 'apple'"),
        (f"data.objects=[{','.join(OBJECTS)}]", "must leave out at least one name.* leave out 'zebra'"),
        ("data.colours=[red,red,blue]", "must be different"),
        ("data.per_prompt=2", "greater than or equal to 3|at least 3"),
        ("data.counts=[5]", "must be from 2, 3, 4, got 5"),
        ("evaluate.samples=20", "at least one prompt of each kind, 24"),
    ],
)
def test_options_that_make_no_scenes_are_refused_by_name(plugins, override, problem):
    from amd_plugin import recipe

    with pytest.raises(InputError, match=problem):
        recipe.load("scenes", plugins, (override,))


def test_options_that_come_back_from_a_runs_folder_make_the_same_scenes():
    options = {"objects": ["dog", "cat", "apple"], "colours": ["red", "blue", "gray"], "counts": [2]}
    assert Scenes(**options).made_of == Scenes(**{name: tuple(value) for name, value in options.items()}).made_of
    with pytest.raises(OptionError, match="Did you mean 'apple'"):
        Scenes(objects=["dog", "cat", "aple"])
