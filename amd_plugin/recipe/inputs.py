"""What a run depends on beside the values of its recipe: its data files, the code of plugins, the versions of rewards.

A recipe names them, and they may be others under the same name. Not looked at are data on the hub, model folders, modules that
a plugin imports, and of a file what follows its first 64 MiB, but for its size.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import xxhash

import amd_plugin
from amd_plugin.checksums import checksum
from amd_plugin.config import RecipeConfig
from amd_plugin.plugins import PluginManager

SECTIONS = ("model", "data", "objective", "rewards", "evaluate")  # that results depend on
CODE = ".code"  # ends the key of a plugin's file
EVALUATE = "evaluate."  # begins the keys of what a run that goes on may change
FIRST = 1 << 26  # bytes of a file that are read

Inputs = dict[str, str]


def inputs_of(config: RecipeConfig, plugins: PluginManager) -> Inputs:
    """Key of the recipe -> what stands there now: size and checksum of a file, version of a reward, file of its code.

    Args:
        config: the resolved recipe.
        plugins: the registry of its plugins; those that move noise levels or strengths have keys of their own.
    """
    plain = config.model_dump(mode="json", include=set(SECTIONS))
    found, factories = {key: said for key, text in _texts(plain) if (said := _file(key, text))}, plugins.rewards()
    for place, rewards in (("rewards", config.rewards), (f"{EVALUATE}rewards", config.evaluate.rewards)):
        for index, reward in enumerate(rewards):
            found |= _of_reward(f"{place}.{index}", reward.name, reward.options, factories)
    if code := _code(plugins.objectives().get(config.objective.name)):
        found[f"objective{CODE}"] = code
    for name in plugins.steering():
        plugin = plugins.get_plugin(name)
        stable = type(plugin).__name__ if name.isdecimal() else name  # pluggy numbers objects without a name
        found[f"plugin {stable}"] = "moves noise levels or strengths"
        if code := _code(plugin):
            found[f"plugin {stable}{CODE}"] = code
    return found


def changed_inputs(saved: Mapping[str, str] | None, now: Mapping[str, str]) -> Inputs:
    """Key -> ``old -> new`` for all that differs, also where it is new or gone; nothing for a run that did not save any."""
    if saved is None:
        return {}
    both = {key: (saved.get(key, "none"), now.get(key, "none")) for key in sorted({*saved, *now})}
    return {key: f"{old} -> {new}" for key, (old, new) in both.items() if old != new}


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict | list):
        for name, entry in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _texts(entry, f"{key}.{name}" if key else str(name))


def _file(key: str, text: str) -> str:
    """Size and checksum of the file at an absolute path; of a folder with data, those of its list of files; else empty."""
    with suppress(OSError, ValueError, RuntimeError):  # what cannot be read is said by what reads it
        path = Path(text).expanduser()
        if not path.is_absolute():
            return ""
        if path.is_file():
            state = path.stat()
            return f"{state.st_size} bytes, checksum {_beginning(path, state.st_size, state.st_mtime_ns)}"
        if key.startswith("data.") and path.is_dir():
            listed = sorted((entry.name, entry.stat().st_size if entry.is_file() else 0) for entry in path.iterdir())
            return f"{len(listed)} files, checksum {xxhash.xxh3_64_hexdigest(repr(listed).encode())}"
    return ""


@lru_cache
def _beginning(path: Path, size: int, changed: int) -> str:
    """The checksum of a file's first bytes; size and time of change only tell one from another in the cache."""
    return checksum(path, FIRST)[:16]


def _of_reward(key: str, name: str, options: Mapping[str, Any], factories: Mapping[str, Any]) -> Inputs:
    """Version and code of a reward, and of those inside of it."""
    factory, found = factories.get(name), Inputs()
    if isinstance(version := getattr(factory, "version", ""), str) and version:
        found[f"{key}.version"] = version
    if code := _code(factory):
        found[f"{key}{CODE}"] = code
    for option, entry in options.items():
        if isinstance(entry, dict) and isinstance(entry.get("name"), str):
            found |= _of_reward(f"{key}.{option}", entry["name"], entry, factories)
    return found


def _code(thing: Any) -> str:
    """Name and checksum of the file of a plugin, or of a factory of one; empty where it is this package's, or none."""
    thing = thing.func if isinstance(thing, partial) else thing
    with suppress(OSError):
        for part in (thing, type(thing)):
            with suppress(TypeError):  # of C, or an object, whose class has a file
                file = Path(inspect.getsourcefile(part) or "")
                if not file.is_file() or file.resolve().is_relative_to(Path(amd_plugin.__file__).resolve().parent):
                    return ""
                return f"{file.name}, checksum {checksum(file)[:16]}"
    return ""
