"""What describes a run: config.yaml, its recipe with every default, and run.json, which says how it was started.

Where one is lost or damaged it is written anew from the newest checkpoint.
"""

from __future__ import annotations

import json
import logging
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from amd_plugin.atomic import write_text
from amd_plugin.config import RecipeConfig
from amd_plugin.errors import InputError
from amd_plugin.host import checkpoint
from amd_plugin.host.checkpoint.files import State
from amd_plugin.host.running.folder_kind import check_run
from amd_plugin.json_files import read
from amd_plugin.plugins import PluginManager
from amd_plugin.recipe.loading import Recipe, load, read_config
from amd_plugin.recipe.yaml_source import Source

SECTIONS = {"model", "data", "objective", "train"}

log = logging.getLogger(__name__)


class About(BaseModel):
    """The content of run.json.

    Attributes:
        recipe, objective: their names.
        overrides: overrides ``a.b=value`` that were applied to the recipe's file.
        command: command line.
        started: time of the last start.
        versions: package -> version.
        commit: git commit of this package's source; empty where it is installed.
        start: the checkpoint of another run that this one began from, until it has one of its own; empty for none.
        inputs: what it depends on beside its recipe, see `amd_plugin.recipe.inputs`; None in runs of earlier versions.
    """

    recipe: str
    objective: str
    overrides: tuple[str, ...] = ()
    command: str = ""
    started: str = ""
    versions: dict[str, str] = {}
    commit: str = ""
    start: str = ""
    inputs: dict[str, str] | None = None


class Described(State):
    """What state.json of a checkpoint says of its run."""

    recipe: dict[str, Any]
    name: str = ""
    overrides: tuple[str, ...] = ()
    inputs: dict[str, str] | None = None


def command_line() -> str:
    """The command of this process, as it would be typed again."""
    name = Path(sys.argv[0]).name
    return shlex.join(["amd-plugin" if name == "__main__.py" else name, *sys.argv[1:]])


def about(output: Path) -> About:
    """What run.json says of the run in `output`; raises InputError where it cannot be read."""
    return _about(output / "run.json")


def saved_config(output: Path) -> RecipeConfig:
    """The recipe in config.yaml of the run in `output`; raises InputError without one that can be used."""
    check_run(output)
    return read_config(output / "config.yaml")


def find_run(output: Path, plugins: PluginManager, overrides: Sequence[str] = (), objective: str | None = None) -> Recipe:
    """The recipe of the run in the folder `output`, with further `overrides` and another `objective` as in `load`.

    Raises:
        InputError: where there is no run, or it cannot be read.
    """
    check_run(output)
    repair(output)
    recipe = load(str(output / "config.yaml"), plugins, overrides, objective)
    known = about(output)
    recipe.name, recipe.overrides = known.recipe, (*known.overrides, *recipe.overrides)
    return recipe


def repair(output: Path) -> None:
    """Writes config.yaml and run.json of a run anew where they are lost or damaged, from its newest checkpoint, and says so.

    Raises:
        InputError: where there is no checkpoint to write them from.
    """
    config, about = output / "config.yaml", output / "run.json"
    broken = {}
    for path, check in ((config, saved_recipe), (about, _about)):
        try:
            check(path)
        except InputError as error:
            broken[path] = str(error)
    if not broken:
        return
    source = checkpoint.newest(output / "checkpoints")
    if source is None and config in broken:
        raise InputError(f"{broken[config]}. There is no checkpoint to write it from: delete {output}, and start again")
    saved = {"recipe": saved_recipe(config)} if source is None else checkpoint.read_state(source, Described)
    recipe = _whole(saved["recipe"], f"{source}: the recipe in state.json")
    contents = {
        config: yaml.safe_dump(recipe, sort_keys=False),
        about: json.dumps(
            {"recipe": saved.get("name") or output.name, "objective": str(recipe["objective"].get("name")),
             "overrides": list(saved.get("overrides", ())), "inputs": saved.get("inputs")}, indent=1,
        ),
    }  # fmt: skip
    for path, problem in broken.items():
        write_text(path, contents[path])
        log.warning("%s; it was written anew from %s", problem, config if source is None else source)


def saved_recipe(config: Path) -> dict[str, Any]:
    """The recipe in a run's config.yaml, which has all of its sections."""
    return _whole(Source(config).read(SECTIONS), str(config))


def _whole(recipe: Any, place: str) -> dict[str, Any]:
    """`recipe`, which has all the sections of a run's; raises InputError where it has not."""
    sections = recipe if isinstance(recipe, dict) else {}
    missing = sorted(name for name in SECTIONS if not isinstance(sections.get(name), dict))
    if missing:
        raise InputError(f"{place}: is not what a run writes: {', '.join(missing)} is missing")
    return sections


def _about(path: Path) -> About:
    return read(path, About, "Delete it, and it is written anew")
