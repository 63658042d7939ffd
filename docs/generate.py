"""Rewrites tables of options, the page of the command line and the schema of recipes from their declarations: ``make docs``.

A table stands between ``<!-- options: amd regime -->`` and ``<!-- end -->``: an objective, and a group of options.
"""

import json
import re
import sys
from pathlib import Path

import typer
from typer.cli import get_docs_for_click

from amd_plugin.cli import app
from amd_plugin.default_plugins import amd, host
from amd_plugin.objectives.amd_options import AMDOptions
from amd_plugin.objectives.dmd_options import DecoupledDMDOptions, DMD2Options, DMDOptions
from amd_plugin.option_tables import table
from amd_plugin.plugins import PluginManager
from amd_plugin.recipe.copying import SCHEMA
from amd_plugin.recipe.schema import recipe_schema

MODELS = {"amd": AMDOptions, "dmd": DMDOptions, "dmd2": DMD2Options, "decoupled_dmd": DecoupledDMDOptions}
MARKED = re.compile(r"(<!-- options: (\w+) (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def generated(text: str) -> str:
    """`text` with its tables as the declarations have them."""
    return MARKED.sub(lambda m: f"{m[1]}{table(MODELS[m[2]], m[3])}\n{m[4]}", text)


def schema() -> str:
    """The schema of recipes that come with the package, with the package's own plugins alone."""
    manager = PluginManager()
    for plugin in (host, amd):
        manager.register(plugin)
    return json.dumps(recipe_schema(manager), indent=1) + "\n"


def command_line() -> str:
    """The page of all commands, in typer's own form of their help."""
    command = typer.main.get_command(app)
    context = typer.Context(command, info_name="amd-plugin")
    return get_docs_for_click(obj=command, ctx=context, name="amd-plugin", title="Command line").strip() + "\n"


def main() -> None:
    """Rewrites all pages and the schema; with ``--check`` names those that would change and ends with 1."""
    stale = []
    docs = Path(__file__).parent
    for file, text in ((docs.parent / "recipes" / SCHEMA, schema()), (docs / "cli.md", command_line())):
        if not file.is_file() or file.read_text() != text:
            stale.append(file.name)
            if "--check" not in sys.argv:
                file.write_text(text)
    for page in sorted(docs.glob("*.md")):
        text = page.read_text()
        if (new := generated(text)) != text:
            stale.append(page.name)
            if "--check" not in sys.argv:
                page.write_text(new)
    if stale and "--check" in sys.argv:
        sys.exit(f"run make docs: {', '.join(stale)} is not what the declared options say")


if __name__ == "__main__":
    main()
