"""The prompts of scenes as data: what they ask for, and how they say it. The six kinds are GenEval's (2310.11513)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

KINDS = ("single", "two", "counting", "colours", "position", "attribution")
NUMBERS = {2: "two", 3: "three", 4: "four"}
RELATIONS = ("left of", "right of", "above", "below")

# The first twelve are the default; whatever a recipe does not name is what the judges know as something else.
OBJECTS = {
    "apple": "🍎", "car": "🚗", "cat": "🐱", "heart": "❤", "star": "⭐", "house": "🏠", "fish": "🐟", "umbrella": "☂",
    "mushroom": "🍄", "rocket": "🚀", "key": "🔑", "bell": "🔔",
    "bird": "🐦", "boat": "⛵", "book": "📕", "bottle": "🍼", "bus": "🚌", "butterfly": "🦋", "cake": "🎂", "chair": "🪑",
    "clock": "⏰", "cloud": "☁", "crown": "👑", "cup": "☕", "dog": "🐶", "flower": "🌼", "guitar": "🎸", "hammer": "🔨",
    "hat": "🎩", "leaf": "🍁", "lock": "🔒", "moon": "🌙", "pear": "🍐", "phone": "📱", "plane": "✈", "robot": "🤖",
    "shoe": "👟", "snail": "🐌", "tree": "🌲", "turtle": "🐢", "wrench": "🔧", "zebra": "🦓",
}  # fmt: skip
PLURALS = {"bus": "buses", "butterfly": "butterflies", "fish": "fish", "leaf": "leaves"}
COLOURS = {
    "red": (220, 30, 38), "yellow": (240, 190, 20), "green": (40, 150, 60), "blue": (40, 100, 230), "purple": (145, 65, 205),
    "gray": (130, 130, 140), "orange": (245, 125, 20), "pink": (245, 120, 180), "brown": (125, 75, 40), "cyan": (30, 190, 205),
}  # fmt: skip


class Thing(NamedTuple):
    """One thing that a prompt asks for: its object, and its colour or None; both are places in the grammar's lists."""

    object: int
    colour: int | None = None


class Prompt(NamedTuple):
    """A prompt and what it asks for.

    Attributes:
        text: the prompt.
        kind: place in `KINDS`.
        things: one to four of them.
        relation: place in `RELATIONS` of where the first thing is as seen from the second; None where it may be anywhere.
    """

    text: str
    kind: int
    things: tuple[Thing, ...]
    relation: int | None = None


def prompts(objects: Sequence[str], colours: Sequence[str], counts: Sequence[int]) -> list[Prompt]:
    """Every prompt about `objects` in `colours`, kind by kind in the order of `KINDS`; `counts` are from `NUMBERS`.

    Example:
        >>> [prompt.text for prompt in prompts(["key", "apple"], ["red", "blue"], [2])][:5]
        ['a key', 'an apple', 'a key and an apple', 'an apple and a key', 'two keys']
    """
    return [*itertools.chain(_single(objects), _two(objects), _counting(objects, counts), _colours(objects, colours),
                             _position(objects), _attribution(objects, colours))]  # fmt: skip


def _single(objects: Sequence[str]) -> Iterator[Prompt]:
    for index, name in enumerate(objects):
        yield Prompt(_a(name), 0, (Thing(index),))


def _two(objects: Sequence[str]) -> Iterator[Prompt]:
    for first, second in itertools.permutations(range(len(objects)), 2):
        yield Prompt(f"{_a(objects[first])} and {_a(objects[second])}", 1, (Thing(first), Thing(second)))


def _counting(objects: Sequence[str], counts: Sequence[int]) -> Iterator[Prompt]:
    for index, name in enumerate(objects):
        for count in counts:
            yield Prompt(f"{NUMBERS[count]} {PLURALS.get(name, name + 's')}", 2, (Thing(index),) * count)


def _colours(objects: Sequence[str], colours: Sequence[str]) -> Iterator[Prompt]:
    for index, name in enumerate(objects):
        for colour, hue in enumerate(colours):
            yield Prompt(_a(f"{hue} {name}"), 3, (Thing(index, colour),))


def _position(objects: Sequence[str]) -> Iterator[Prompt]:
    for first, second in itertools.permutations(range(len(objects)), 2):
        for relation, words in enumerate(RELATIONS):
            text = f"{_a(objects[first])} {words} {_a(objects[second])}"
            yield Prompt(text, 4, (Thing(first), Thing(second)), relation)


def _attribution(objects: Sequence[str], colours: Sequence[str]) -> Iterator[Prompt]:
    for first, second in itertools.permutations(range(len(objects)), 2):
        for one, other in itertools.permutations(range(len(colours)), 2):
            text = f"{_a(f'{colours[one]} {objects[first]}')} and {_a(f'{colours[other]} {objects[second]}')}"
            yield Prompt(text, 5, (Thing(first, one), Thing(second, other)))


def _a(name: str) -> str:
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
