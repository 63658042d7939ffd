"""What somebody who helps needs to know first: versions, devices, plugins, cache and hub.

No value of an environment variable is shown, as these may hold secrets.
"""

from __future__ import annotations

import importlib
import os
import platform
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from importlib.util import cache_from_source
from pathlib import Path
from typing import NamedTuple

import torch
from packaging.requirements import Requirement

from amd_plugin import cache
from amd_plugin.models.shipped_configs import hub_problem
from amd_plugin.plugins import PluginManager

PROBE = "stabilityai/stable-diffusion-xl-base-1.0"


class Finding(NamedTuple):
    """One line of the report.

    Attributes:
        what: component that was examined.
        found: result in words.
        ok: whether training can work like this.
    """

    what: str
    found: str
    ok: bool = True


def examine(plugins: PluginManager) -> list[Finding]:
    """All findings. An offline hub or a missing GPU is no failure; a wrong version, plugin or cache folder is one."""
    parts = (_versions(), _bytecode(), _devices(), [_deepspeed()], _plugins(plugins), [_cache()], [_hub()])
    return [finding for part in parts for finding in part]


def _versions() -> Iterator[Finding]:
    yield Finding("system", f"{platform.system()} {platform.machine()}, Python {platform.python_version()}")
    try:
        requirements = metadata.requires("amd-plugin") or []
        yield Finding("amd-plugin", metadata.version("amd-plugin"))
    except metadata.PackageNotFoundError:
        yield Finding("amd-plugin", "is not installed; its dependencies cannot be checked", ok=False)
        return
    for requirement in map(Requirement, requirements):
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield check(requirement)


def check(requirement: Requirement) -> Finding:
    """Whether an installed distribution satisfies `requirement`."""
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return Finding(requirement.name, f"is not installed, needs {requirement.specifier or 'any version'}", ok=False)
    # A development build counts as the release it precedes.
    if requirement.specifier.contains(version, prereleases=True):
        return Finding(requirement.name, version)
    return Finding(requirement.name, f"{version}, needs {requirement.specifier}", ok=False)


def _bytecode() -> Iterator[Finding]:
    """A finding where each command compiles its libraries again: uv compiles nothing, and many images forbid bytecode."""
    if sys.dont_write_bytecode and not Path(cache_from_source(str(torch.__file__))).is_file():
        remedy = "unset PYTHONDONTWRITEBYTECODE, or compile them once: python -m compileall -q FOLDER_OF_SITE_PACKAGES"
        yield Finding("bytecode", f"none, and none may be written: each command compiles torch again, for 10 to 15 s; {remedy}")


def _devices() -> Iterator[Finding]:
    if not torch.cuda.is_available():
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "a build for CPUs"
        yield Finding("GPU", f"none; torch is {built}")
        return
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        yield Finding(f"GPU {index}", f"{gpu.name}, {gpu.total_memory / 1e9:.1f} GB")
    yield Finding("bf16", "yes" if torch.cuda.is_bf16_supported() else "no; set distributed.mixed_precision to no")


def _deepspeed() -> Finding:
    """Whether DeepSpeed can be imported. Its CPU operators are compiled only where something is offloaded."""
    try:
        importlib.import_module("deepspeed")
        from deepspeed.ops.op_builder import CPUAdamBuilder
    except Exception as error:  # whatever an extension module or a missing compiler raises
        return Finding("DeepSpeed", f"cannot be imported: {type(error).__name__}; distributed.teacher needs it", ok=False)
    compiles = CPUAdamBuilder().is_compatible(verbose=False)
    return Finding("DeepSpeed", f"can be imported; its operations for CPUs can{'' if compiles else 'not'} be compiled here")


def _plugins(plugins: PluginManager) -> Iterator[Finding]:
    for status in plugins.statuses.values():
        cause = f", {status.cause}" if status.cause else ""
        yield Finding(f"plugin {status.name}", f"{status.status}{cause}", ok=status.status != "failed")


def _cache() -> Finding:
    if (folder := cache.users_root()) is None:
        return Finding(
            "cache", "there is no home folder for it; set AMD_PLUGIN_CACHE to a folder that can be written", ok=False
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    except OSError as error:
        cause = error.strerror or type(error).__name__
        return Finding("cache", f"cannot be written: {cause}; set AMD_PLUGIN_CACHE to a folder that can", ok=False)
    location = "AMD_PLUGIN_CACHE" if "AMD_PLUGIN_CACHE" in os.environ else "the user's cache folder"
    return Finding("cache", f"{location}, can be written, holds {size / 1e9:.2f} GB")


def _hub() -> Finding:
    problem = hub_problem(PROBE)
    return Finding("hub", "answers" if problem is None else f"does not answer ({problem}); models must be folders or cached")
