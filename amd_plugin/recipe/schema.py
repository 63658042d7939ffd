"""The JSON Schema of recipes, for editors: every section, with the options of all installed tasks, objectives and rewards."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from amd_plugin.choices import trackers
from amd_plugin.config import (
    REWARD_CONTEXT,
    DataConfig,
    EvaluateConfig,
    ModelConfig,
    ObjectiveConfig,
    RecipeConfig,
    RewardConfig,
    TrainConfig,
)
from amd_plugin.errors import InputError
from amd_plugin.option_tables import arguments
from amd_plugin.options import options_model
from amd_plugin.plugins import PluginManager
from amd_plugin.tasks import TASKS

Factories = Mapping[str, Callable[..., Any]]


def recipe_schema(plugins: PluginManager) -> dict[str, Any]:
    """The schema of `RecipeConfig`, with the options of every installed task, objective and reward."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **RecipeConfig.model_json_schema()}
    sections: dict[str, Any] = schema["$defs"]
    _name_options(schema, sections[DataConfig.__name__], "task", TASKS)
    _name_options(schema, sections[RewardConfig.__name__], "name", plugins.rewards(), ignore=REWARD_CONTEXT)
    # An objective's section may hold options of other objectives, for `--objective NAME`.
    _name_options(schema, sections[ObjectiveConfig.__name__], "name", plugins.objectives(), shared=True)
    # What installed plugins and libraries know, which no type of a key can say.
    metrics = sorted({metric for task in TASKS.values() for metric in task.metrics})
    sections[EvaluateConfig.__name__]["properties"]["held_out"]["items"]["enum"] = metrics
    sections[TrainConfig.__name__]["properties"]["trackers"]["items"]["enum"] = trackers()
    sections[ModelConfig.__name__]["properties"]["pipeline"]["anyOf"][0]["enum"] = sorted(plugins.families())
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
    options: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {}
    for name, factory in factories.items():
        try:
            model = options_model(factory, ignore=ignore)
        except InputError:  # the options of a plugin with an unreadable signature are unknown
            continue
        factory_schema = model.model_json_schema()
        schema["$defs"] |= factory_schema.get("$defs", {})
        meanings = arguments(factory)
        properties = {
            option: {"description": meanings[option]} | _or_reward(taken) if option in meanings else _or_reward(taken)
            for option, taken in factory_schema.get("properties", {}).items()
        }
        rules: dict[str, Any] = {"additionalProperties": model.model_config.get("extra") == "allow"}
        if "required" in factory_schema:
            rules["required"] = factory_schema["required"]
        options[name] = properties, rules
    every = _of_any([properties for properties, _ in options.values()]) if shared else {}
    section["properties"][key] = own[key] | {"enum": sorted(factories)}
    section["allOf"] = [
        {
            # A section without the key is told so once, and not by what each name would ask of it.
            "if": {"properties": {key: {"const": name}}, "required": [key]},
            "then": {"properties": {**every, **own, **properties}, **rules},
        }
        for name, (properties, rules) in options.items()
    ]


def _or_reward(option: dict[str, Any]) -> dict[str, Any]:
    """The schema of an option; of one that is the entry of a reward, see `WrappedReward`, that of a reward."""
    return {"$ref": f"#/$defs/{RewardConfig.__name__}"} if option.get("wraps") == "reward" else option


def _of_any(factories: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Option -> schema of the values that at least one of several factories takes."""
    found: dict[str, list[Any]] = {}
    for properties in factories:
        for option, taken in properties.items():
            if taken not in found.setdefault(option, []):
                found[option].append(taken)
    return {option: {"anyOf": schemas} if len(schemas) > 1 else schemas[0] for option, schemas in found.items()}
