"""Code that the documentation shows, and scripts that belong to no package."""

import importlib.util
import re
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[2]


def blocks(path, language):
    """The code of the fenced blocks of a file in `language`, which is empty for plain ones, without a list's indentation."""
    fenced = re.findall(r"^ *```(\w*)\n(.*?)^ *```$", (ROOT / path).read_text(), re.DOTALL | re.MULTILINE)
    return [textwrap.dedent(code) for name, code in fenced if name == language]


def script(path):
    """The module that a script is, by its path from the root."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
