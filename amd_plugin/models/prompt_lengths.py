"""How many prompts of a run are longer than its text encoders read, said once instead of once per batch by a library."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from amd_plugin.models.family import Family

log = logging.getLogger(__name__)

# Tokenizers without a limit of their own say something like 1e30.
UNLIMITED = 10**6


class Beyond(NamedTuple):
    """What an encoder does not see of some prompts.

    Attributes:
        prompts: number of prompts that are too long.
        tokens: largest number of tokens that are cut off from one.
        limit: number of tokens that the encoder reads, its special ones included.
    """

    prompts: int
    tokens: int
    limit: int


def token_limits(family: Family, pipeline: Any) -> dict[str, int]:
    """Number of tokens that each encoder of `pipeline` reads, by the name of its tokenizer."""
    own: Mapping[str, int] = getattr(family, "token_limits", {})
    tokenizers = {n: part for n, part in pipeline.components.items() if isinstance(part, PreTrainedTokenizerBase)}
    limits = {n: own.get(n) or family.text_length or part.model_max_length for n, part in tokenizers.items()}
    return {name: int(limit) for name, limit in limits.items() if limit < UNLIMITED}


def beyond(pipeline: Any, prompts: Sequence[str], limits: Mapping[str, int]) -> list[dict[str, Beyond]]:
    """For each of `prompts`, what is beyond the limit of each tokenizer of `pipeline`; empty for one that fits."""
    found: list[dict[str, Beyond]] = [{} for _ in prompts]
    for name, limit in limits.items():
        for index, ids in enumerate(pipeline.components[name](list(prompts)).input_ids):
            if len(ids) > limit:
                found[index][name] = Beyond(1, len(ids) - limit, limit)
    return found


def total(parts: Sequence[Mapping[str, Beyond]]) -> dict[str, Beyond]:
    """All of `parts` together, by tokenizer."""
    sums: dict[str, Beyond] = {}
    for part in parts:
        for name, one in part.items():
            before = sums.get(name, Beyond(0, 0, one.limit))
            sums[name] = Beyond(before.prompts + one.prompts, max(before.tokens, one.tokens), one.limit)
    return sums


def warn(found: Mapping[str, Beyond]) -> None:
    """Logs one line per tokenizer with prompts that are too long."""
    for name, one in found.items():
        which = "1 prompt is" if one.prompts == 1 else f"{one.prompts} prompts are"
        log.warning(
            "data.source: %s longer than the %d tokens that the encoder of %s reads, by up to %d tokens; what is beyond has no "
            "effect", which, one.limit, name, one.tokens,
        )  # fmt: skip
