"""Code that the documentation shows."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def blocks(path, language):
    """The code of the fenced blocks of a file in `language`, which is empty for plain ones."""
    fenced = re.findall(r"^ *```(\w*)\n(.*?)^ *```$", (ROOT / path).read_text(), re.DOTALL | re.MULTILINE)
    return [code for name, code in fenced if name == language]
