"""The judges that come with the package, on real scenes and on falsified ones."""

import logging
import shutil

import pytest
import torch

from amd_plugin.randomness import generator
from amd_plugin.rewards.builtin.scenes import SceneReward
from amd_plugin.tasks.scenes import judges
from amd_plugin.tasks.scenes.drawing import draw, margin
from amd_plugin.tasks.scenes.grammar import COLOURS, KINDS
from amd_plugin.tasks.scenes.pictures import Pictures
from amd_plugin.tasks.scenes.sprites import DRAWINGS, drawings, other_drawings
from amd_plugin.tasks.scenes.task import Scenes
from amd_plugin.tasks.shipped import FOLDER, SUMS, recorded, sha256, shipped

COUNT = 480
FIRST_LOSSES = [40.46082305908203, 38.16646957397461, 38.534271240234375]


@pytest.fixture(scope="module")
def scenes():
    task = Scenes()
    labels = task.balanced_labels(COUNT)
    return task, labels, task.pictures(labels, generator(1, "real"))


def other(task, labels, change):
    """Labels of the prompts that `change` makes of the texts of `labels`, and the rows that it changed."""
    texts = [change(text) for text in task.prompts(labels)]
    rows = torch.tensor([text is not None and text in task._labels for text in texts])
    return torch.tensor([task._labels[text] for text in texts if text in task._labels]), rows


@pytest.mark.parametrize("judge", ["a", "b"])
def test_real_scenes_are_right(scenes, judge):
    task, labels, pictures = scenes
    verdict = task._verdict(judge, pictures, labels)
    by_kind = task._by_kind(verdict.right.float(), labels)
    assert min(by_kind.values()) > 0.93, by_kind
    assert verdict.soft.median() > -0.3 and verdict.soft.min() >= -16 and verdict.soft.max() <= 0


def swapped_colours(text):
    words = text.split()
    if len(words) != 7:
        return None
    words[1], words[5] = words[5], words[1]
    articles = {True: "an", False: "a"}
    words[0], words[4] = articles[words[1][0] in "aeiou"], articles[words[5][0] in "aeiou"]
    return " ".join(words)


def opposite(text):
    pairs = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    return next((text.replace(f" {a} ", f" {b} ") for a, b in pairs.items() if f" {a} " in text), None)


def one_more(text):
    numbers = {"two": "three", "three": "four"}
    first, _, rest = text.partition(" ")
    return f"{numbers[first]} {rest}" if first in numbers else None


def one_less(text):
    numbers = {"three": "two", "four": "three"}
    first, _, rest = text.partition(" ")
    return f"{numbers[first]} {rest}" if first in numbers else None


@pytest.mark.parametrize("judge", ["a", "b"])
@pytest.mark.parametrize(
    ("corner", "fails_by", "passes"),
    [((0, 14), 0.0, True), ((12, 14), 0.0, True), ((12, 9), 0.6, True), ((14, 9), 2.2, False), ((14, 0), 11.2, False)],
    ids=["straight", "diagonal", "within the tolerance", "beyond it", "at a right angle"],
)
def test_a_relation_that_fails_by_less_than_the_tolerance_passes(scenes, judge, corner, fails_by, passes):
    """A star in the upper left corner and a fish whose corner is at (y, x): "a star left of a fish"."""
    task, bank, draws = scenes[0], scenes[0].pictures.bank, generator(4, "relations")
    objects = [task.made_of["objects"].index(name) for name in ("star", "fish")]
    colours = torch.randint(len(task.made_of["colours"]), (100, 2), generator=draws)
    things = torch.stack([bank[thing, colours[:, place], 0] for place, thing in enumerate(objects)], 1)
    pictures = draw(things, torch.tensor([(0, 0), corner]).expand(100, 2, 2), 24)
    middles = torch.tensor([(5.0, 5.0), (corner[0] + 5.0, corner[1] + 5.0)])
    assert min(float(margin(0, *middles)), 0) == pytest.approx(-fails_by, abs=1e-5)
    share = task.verdict(judge, pictures, ["a star left of a fish"] * 100).right.float().mean()
    assert share > 0.9 if passes else share < 0.1


@pytest.mark.parametrize("judge", ["a", "b"])
@pytest.mark.parametrize("change", [swapped_colours, opposite, one_more, one_less])
def test_falsified_scenes_are_wrong_and_score_low(scenes, judge, change):
    task, labels, pictures = scenes
    asked, rows = other(task, labels, change)
    assert len(asked) >= 10
    verdict = task._verdict(judge, pictures[rows], asked)
    assert verdict.right.float().mean() < 0.02
    assert verdict.soft.median() < -3


def test_blank_and_foreign_pictures_are_wrong(scenes):
    task, labels, _ = scenes
    blank = torch.ones(len(labels), 3, 24, 24)
    assert not task._verdict("b", blank, labels).right.any()
    strangers = Scenes(objects=("dog", "tree", "moon", "crown"))
    theirs = strangers.pictures(strangers.balanced_labels(96), generator(2, "strangers"))
    verdict = task._verdict("b", theirs, labels[: len(theirs)])
    assert verdict.right.float().mean() < 0.02 and verdict.blended.mean() > 0.7


def test_a_blend_does_not_pass_for_two_things(scenes):
    """The soft score of two things needs two places: half of each in one place must score no better than one thing."""
    task, labels, pictures = scenes
    rows = torch.isin(labels, task._kinds[KINDS.index("two")])
    single = pictures[torch.isin(labels, task._kinds[KINDS.index("single")])]
    assert task._verdict("a", single, labels[rows][: len(single)]).soft.max() < -2


def test_the_measures_of_real_scenes_are_those_of_no_error(scenes):
    task, labels, pictures = scenes
    found = task.evaluate(pictures, labels, pictures)
    assert found["score"] > 0.95 and abs(found["gap"]) < 0.03 and found["blended"] < 0.02
    assert found["frechet"] < 60 and found["precision"] > 0.8 and found["recall"] > 0.8  # of 480 pictures: few for covariances
    assert found["diversity"] == pytest.approx(1, abs=0.15)
    noise = torch.rand(pictures.shape, generator=generator(3, "noise"))
    wrong = task.evaluate(noise, labels, noise)
    assert wrong["score"] < 0.02 and wrong["frechet"] > 10 * found["frechet"] and wrong["recall"] < 0.1


def test_the_training_of_a_judge_begins_like_this():
    """So that a change of lessons, drawings or rates is noticed; the shipped judge was made by an earlier version."""
    task = Scenes()
    objects, colours = task.made_of["objects"], task.made_of["colours"]
    losses = judges.train(judges.untrained("b", objects, colours, 0), "b", objects, colours, 0, steps=3)
    assert losses == pytest.approx(FIRST_LOSSES, rel=1e-4)


def test_the_same_seed_makes_the_same_first_updates():
    """To the bit, whatever else is drawn meanwhile."""
    task = Scenes()
    objects, colours = task.made_of["objects"], task.made_of["colours"]
    found = []
    for _ in range(2):
        network = judges.untrained("b", objects, colours, 0)
        losses = judges.train(network, "b", objects, colours, 0, steps=2)
        found.append((losses, network.state_dict()))
        torch.rand(7)
    assert found[0][0] == found[1][0]
    assert all(torch.equal(value, found[1][1][name]) for name, value in found[0][1].items())


def test_what_is_shipped_is_what_was_recorded_and_fits_the_defaults():
    task = Scenes()
    assert recorded(FOLDER) == {file.name: sha256(file) for file in FOLDER.glob("*.safetensors")}
    assert DRAWINGS.read_text().strip() == drawings()
    for judge in "abc":
        about = judges.made_of(judge, task.made_of["objects"], task.made_of["colours"], 0)
        assert shipped(f"scenes_judge_{judge}", about) is not None
        assert shipped(f"scenes_judge_{judge}", {**about, "seed": 1}) is None


def test_a_shipped_file_that_is_not_the_recorded_one_is_not_used(tmp_path, caplog):
    task = Scenes()
    about = judges.made_of("a", task.made_of["objects"], task.made_of["colours"], 0)
    for name in (SUMS, "scenes_judge_a.safetensors"):
        shutil.copy(FOLDER / name, tmp_path)
    assert shipped("scenes_judge_a", about, tmp_path) == tmp_path / "scenes_judge_a.safetensors"
    content = bytearray((tmp_path / "scenes_judge_a.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "scenes_judge_a.safetensors").write_bytes(content)
    assert shipped("scenes_judge_a", about, tmp_path) is None and "is not the file that SHA256SUMS names" in caplog.text


def test_weights_of_other_drawings_or_colours_are_not_used(monkeypatch):
    monkeypatch.setitem(COLOURS, "red", (0, 0, 1))
    other_drawings.cache_clear()
    try:
        task = Scenes()
        about = judges.made_of("b", task.made_of["objects"], task.made_of["colours"], 0)
        assert task.made_of["drawings"] == about["drawings"] and shipped("scenes_judge_b", about) is None
    finally:
        other_drawings.cache_clear()


def test_a_poor_new_judge_is_warned_about_once(monkeypatch, caplog):
    monkeypatch.setattr(judges, "STEPS", dict.fromkeys("abc", 20))
    for _ in range(2):
        Scenes(objects=("dog", "tree", "moon"), counts=(2,)).make_judges()
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert [message[:22] for message in warned] == ["data: the new judge A ", "data: the new judge B "]
    assert all("of 480 real scenes right" in message and "Take fewer objects" in message for message in warned)


def test_judges_are_made_before_the_first_update():
    for make in (SceneReward, lambda task: task.asked_for(8, 24)):
        make(task := Scenes())
        assert "_detectors" in vars(task), "else the first call trains them, in the middle of an update"


def test_a_prompt_whose_real_pictures_are_equal_has_no_diversity(scenes, monkeypatch):
    task, labels, pictures = scenes
    expected = task.evaluate(pictures, labels, pictures)["diversity"]
    draw_real = Pictures.__call__

    def with_equal_ones(self, asked, draws):
        real = draw_real(self, asked, draws)
        real[asked == labels[0]] = real[0].clone()
        return real

    monkeypatch.setattr(Pictures, "__call__", with_equal_ones)
    assert task.evaluate(pictures, labels, pictures)["diversity"] == pytest.approx(expected, abs=0.05)
