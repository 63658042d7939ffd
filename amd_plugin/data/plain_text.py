"""Text files of prompts that can surely be read: a check of a recipe need not wait seconds for `datasets` to be imported."""

from __future__ import annotations

from pathlib import Path

_AT_ONCE = 1 << 24  # bytes that are read to find out; a longer file is opened in full


def surely_readable(source: str) -> bool:
    """Whether `source` is a .txt file in UTF-8 with at least one prompt, and without anything that `PromptRows` refuses.

    False says nothing: whoever opens the file learns what is wrong with it, if anything is.
    """
    path = Path(source)
    try:
        if path.suffix.lower() != ".txt" or not path.is_file() or path.stat().st_size > _AT_ONCE:
            return False
        text = path.read_text("utf-8-sig")
    except (OSError, ValueError):
        return False
    return bool(text.strip()) and "\0" not in text
