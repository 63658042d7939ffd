"""Rewrites the tables of options in the docs from where the options are declared: ``make docs``.

A table stands between ``<!-- options: amd regime -->`` and ``<!-- end -->``: an objective, and a group of options.
"""

import re
import sys
from pathlib import Path

from amd_plugin.objectives.amd_options import AMDOptions
from amd_plugin.objectives.dmd_options import DecoupledDMDOptions, DMD2Options, DMDOptions
from amd_plugin.option_tables import table

MODELS = {"amd": AMDOptions, "dmd": DMDOptions, "dmd2": DMD2Options, "decoupled_dmd": DecoupledDMDOptions}
MARKED = re.compile(r"(<!-- options: (\w+) (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def generated(text: str) -> str:
    """`text` with its tables as the declarations have them."""
    return MARKED.sub(lambda m: f"{m[1]}{table(MODELS[m[2]], m[3])}\n{m[4]}", text)


def main() -> None:
    """Rewrites all pages; with ``--check`` names those that would change and ends with 1."""
    stale = []
    for page in sorted(Path(__file__).parent.glob("*.md")):
        text = page.read_text()
        if (new := generated(text)) != text:
            stale.append(page.name)
            if "--check" not in sys.argv:
                page.write_text(new)
    if stale and "--check" in sys.argv:
        sys.exit(f"run make docs: the tables of {', '.join(stale)} are not those of the declared options")


if __name__ == "__main__":
    main()
