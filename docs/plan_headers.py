"""Rewrites what the headers of recipes say of `amd-plugin plan`: ``make docs``.

A header's line ``--gpus N --set ...: text`` is planned as it says, and its text written anew.
"""

import os
import re
from pathlib import Path

from amd_plugin import get_plugin_manager, recipe
from amd_plugin.plan import plan
from amd_plugin.plugins import PluginManager

RECIPES = Path(__file__).parents[1] / "recipes"
GPU = 80_000_000_000
PLANNED = re.compile(r"^(#   --gpus (\d+)((?: --set \S+)*)): .*$", re.MULTILINE)


def planned(text: str, name: str, plugins: PluginManager) -> str:
    """The recipe `text`, the header's plans made anew with the recipe that comes with the package."""

    def line(match: re.Match[str]) -> str:
        found = plan(recipe.load(name, plugins, match[3].split(" --set ")[1:]), plugins, int(match[2]), GPU)
        return f"{match[1]}: {found.peak / 1e9:.1f} GB, {found.hours[0]:.0f} hours"

    return PLANNED.sub(line, text)


def main() -> None:
    """Rewrites the headers."""
    plugins = get_plugin_manager()
    for path in sorted(RECIPES.glob("*.yaml")):
        if PLANNED.search(text := path.read_text()):
            path.write_text(planned(text, path.stem, plugins))


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    main()
