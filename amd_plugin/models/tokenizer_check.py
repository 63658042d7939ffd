"""A tokenizer whose vocabulary is missing: transformers makes one without a word of warning."""

from __future__ import annotations

from typing import Any

from amd_plugin.models.quiet import quiet

SENTENCES = ("a red apple", "two tall blue houses")


def tells_words_apart(tokenizer: Any) -> bool:
    """Whether a tokenizer maps different words to different tokens.

    Where its files are missing, transformers makes one without a vocabulary. The test is on two sentences without a common
    word, or, for a vocabulary too small for them, on two of its own words.
    """
    special = set(tokenizer.all_special_ids)
    words = sorted(word for word, index in tokenizer.get_vocab().items() if word.isalpha() and index not in special)

    def apart(one: str, two: str) -> bool:
        first, second = ([token for token in tokenizer(text).input_ids if token not in special] for text in (one, two))
        return bool(first and second and first != second)

    with quiet():  # a tokenizer may find the sentences long
        return apart(*SENTENCES) or (len(words) > 1 and apart(words[0], words[-1]))
