"""Rewrites the tables of options in the docs, and the schema of recipes, from where the options are declared: ``make docs``.

A table stands between ``<!-- options: amd regime -->`` and ``<!-- end -->``: an objective, and a group of options.
The table of what hosts offer stands after ``<!-- offers -->``.
"""

import json
import re
import sys
from pathlib import Path

from amd_plugin.adapters import offers
from amd_plugin.default_plugins import amd, host
from amd_plugin.objectives.amd_options import AMDOptions
from amd_plugin.objectives.dmd_options import DecoupledDMDOptions, DMD2Options, DMDOptions
from amd_plugin.option_tables import table
from amd_plugin.plugins import PluginManager
from amd_plugin.recipe.copying import SCHEMA
from amd_plugin.recipe.schema import recipe_schema

MODELS = {"amd": AMDOptions, "dmd": DMDOptions, "dmd2": DMD2Options, "decoupled_dmd": DecoupledDMDOptions}
OFFERED = re.compile(r"(<!-- offers -->\n).*?(<!-- end -->)", re.DOTALL)
MARKED = re.compile(r"(<!-- options: (\w+) (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def generated(text: str) -> str:
    """`text` with its tables as the declarations have them."""
    text = OFFERED.sub(lambda m: f"{m[1]}{offers.table()}\n{m[2]}", text)
    return MARKED.sub(lambda m: f"{m[1]}{table(MODELS[m[2]], m[3])}\n{m[4]}", text)


def schema() -> str:
    """The schema of recipes that come with the package, with the package's own plugins alone."""
    manager = PluginManager()
    for plugin in (host, amd):
        manager.register(plugin)
    return json.dumps(recipe_schema(manager), indent=1) + "\n"


def main() -> None:
    """Rewrites all pages and the schema; with ``--check`` names those that would change and ends with 1."""
    stale = []
    file = Path(__file__).parents[1] / "recipes" / SCHEMA
    if not file.is_file() or file.read_text() != schema():
        stale.append(file.name)
        if "--check" not in sys.argv:
            file.write_text(schema())
    for page in sorted(Path(__file__).parent.glob("*.md")):
        text = page.read_text()
        if (new := generated(text)) != text:
            stale.append(page.name)
            if "--check" not in sys.argv:
                page.write_text(new)
    if stale and "--check" in sys.argv:
        sys.exit(f"run make docs: {', '.join(stale)} is not what the declared options say")


if __name__ == "__main__":
    main()
