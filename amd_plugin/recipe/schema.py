"""The JSON Schema of recipes, for editors: every section, with the options of all installed tasks, objectives and rewards."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from amd_plugin.config import REWARD_CONTEXT, DataConfig, ObjectiveConfig, RecipeConfig, RewardConfig
from amd_plugin.errors import InputError
from amd_plugin.options import options_model
from amd_plugin.plugins import PluginManager
from amd_plugin.tasks import TASKS

Factories = Mapping[str, Callable[..., Any]]


def recipe_schema(plugins: PluginManager) -> dict[str, Any]:
    """The schema of `RecipeConfig`, with the options of every installed task, objective and reward."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **RecipeConfig.model_json_schema()}
    sections = schema["$defs"]
    _name_options(schema, sections[DataConfig.__name__], "task", TASKS)
    _name_options(schema, sections[RewardConfig.__name__], "name", plugins.rewards(), ignore=REWARD_CONTEXT)
    # An objective's section may hold options of other objectives, for `--objective NAME`.
    _name_options(schema, sections[ObjectiveConfig.__name__], "name", plugins.objectives(), shared=True)
    return schema


def _name_options(
    schema: dict[str, Any], section: dict[str, Any], key: str, factories: Factories, *, ignore: tuple[str, ...] = (),
    shared: bool = False,
) -> None:  # fmt: skip
    """Adds to `section` the options of each factory, for a `key` with the factory's name.

    Args:
        schema: schema of the recipe, which gets the factories' definitions.
        section: schema of the section.
        key: key of the section whose value is the name of a factory.
        factories: factories by name.
        ignore: names of parameters that the host fills in.
        shared: whether the section may hold options of other factories too.
    """
    own = dict(section["properties"])
    options: dict[str, tuple[dict[str, Any], bool]] = {}
    for name, factory in factories.items():
        try:
            model = options_model(factory, ignore=ignore)
        except InputError:  # the options of a plugin with an unreadable signature are unknown
            continue
        factory_schema = model.model_json_schema()
        schema["$defs"] |= factory_schema.get("$defs", {})
        options[name] = factory_schema.get("properties", {}), model.model_config.get("extra") == "allow"
    every: dict[str, Any] = {option: {} for properties, _ in options.values() for option in properties} if shared else {}
    section["properties"][key] = own[key] | {"enum": sorted(factories)}
    section["allOf"] = [
        {
            "if": {"properties": {key: {"const": name}}},
            "then": {"properties": {**every, **own, **properties}, "additionalProperties": is_open},
        }
        for name, (properties, is_open) in options.items()
    ]
