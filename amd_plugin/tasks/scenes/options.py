"""The options of scenes in a recipe's section ``data``."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from amd_plugin.errors import did_you_mean
from amd_plugin.options import Strict, option
from amd_plugin.tasks.scenes.grammar import COLOURS, NUMBERS, OBJECTS

# Lists count as tuples: options that come back from a file are lists. Editors find a typo by what the schema lists; the
# validators below have better words for it.
Object = Annotated[str, Field(json_schema_extra={"enum": [*OBJECTS]})]
Colour = Annotated[str, Field(json_schema_extra={"enum": [*COLOURS]})]
Count = Annotated[int, Field(json_schema_extra={"enum": [*NUMBERS]})]


class SceneOptions(Strict):
    """Which prompts there are, and whose judges read their pictures."""

    objects: Annotated[tuple[Object, ...], Field(min_length=3, strict=False)] = option(
        tuple(OBJECTS)[:12],
        "names of the objects, at least three and not all that there are; the others are what judges must not accept",
    )
    colours: Annotated[tuple[Colour, ...], Field(min_length=3, strict=False)] = option(
        tuple(COLOURS)[:6], "names of the colours, at least three"
    )
    counts: Annotated[tuple[Count, ...], Field(min_length=1, strict=False)] = option(
        (2, 3, 4), "numbers that prompts count to, from 2, 3 and 4"
    )
    per_prompt: int = option(4, "number of evaluation samples per prompt; GenEval has 4", ge=3)
    judge_seed: int | None = option(
        0, "seed of the judges; null takes the run's, so that each seed has judges of its own", ge=0
    )

    @field_validator("objects", "colours")
    @classmethod
    def _known(cls, value: tuple[str, ...], info: object) -> tuple[str, ...]:
        known = OBJECTS if getattr(info, "field_name", "") == "objects" else COLOURS
        for name in value:
            if name not in known:
                raise ValueError(f"unknown name, got '{name}'.{did_you_mean(name, known)} There are: {', '.join(known)}")
        return _once(value)

    @field_validator("objects")
    @classmethod
    def _not_all(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(value) == len(OBJECTS):
            left = "must leave out at least one name, of which judges learn what is none of the objects"
            raise ValueError(f"{left}, got all {len(OBJECTS)}; leave out '{value[-1]}', for instance")
        return value

    @field_validator("counts")
    @classmethod
    def _countable(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        for number in value:
            if number not in NUMBERS:
                raise ValueError(f"must be from {', '.join(map(str, NUMBERS))}, got {number}")
        return _once(value)


def _once(value: tuple[object, ...]) -> tuple:  # type: ignore[type-arg]  # of names or of numbers
    if len(set(value)) < len(value):
        raise ValueError(f"must be different, got {list(value)}")
    return value
