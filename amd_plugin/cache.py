"""What is made once and kept, e.g. teachers and classifiers, by a hash of everything that it depends on.

It lies under ``$AMD_PLUGIN_CACHE``, or ``amd-plugin`` in the user's cache folder. Deleting it costs time only, and so does a
cache that is damaged, or that this user may not use: what it should hold is made anew.
"""

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Mapping
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from amd_plugin.atomic import replaced_folder
from amd_plugin.checksums import changed, checksums
from amd_plugin.errors import InputError
from amd_plugin.json_files import read
from amd_plugin.threads import one_thread

log = logging.getLogger(__name__)

CHECKSUMS, MADE_OF = "checksums.json", "made_of.json"
_kept: list[tempfile.TemporaryDirectory[str]] = []


def root() -> Path:
    """The folder of everything that is kept: one that ends with this process, with a warning, for a user without any."""
    return users_root() or _nowhere()


def users_root() -> Path | None:
    """The folder of everything that is kept; None for a user without a home folder, as containers may have."""
    if own := os.environ.get("AMD_PLUGIN_CACHE"):  # an empty one would be the current folder
        return Path(own)
    home = os.path.expanduser("~")  # Path.home raises where there is none
    caches = os.environ.get("XDG_CACHE_HOME") or (f"{home}/.cache" if os.path.isabs(home) else "")
    return Path(caches) / "amd-plugin" if caches else None


@lru_cache
def _nowhere() -> Path:
    log.warning("cache: this user has no home folder; all is made for this process alone. Set AMD_PLUGIN_CACHE")
    return own_root()


def cached(kind: str, made_of: Mapping[str, Any], make: Callable[[Path], None]) -> Path:
    """The folder that `make` filled, now or in an earlier run; of several processes one makes it and the others wait.

    It is made with one thread, so that it is the same to the bit whichever command makes it first.

    Args:
        kind: first part of the folder's name.
        made_of: JSON-able; everything that the result depends on beside this package's code and the libraries' versions,
            which are added here.
        make: function that fills the empty folder it is given.
    """
    description = json.dumps(dict(made_of), sort_keys=True)
    digest = hashlib.sha256("\0".join((description, _code(), torch.__version__, version("diffusers"))).encode()).hexdigest()[
        :16
    ]
    folder = root() / f"{kind}-{digest}"
    try:
        if not _problem(folder):  # before its lock, which cannot be taken where one may only read
            return folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if problem := _problem(folder):
                if folder.exists():
                    log.warning("cache %s: %s; it is made anew", folder, problem)
                _fill(folder, make, description)
        return folder
    except OSError as error:
        log.warning(
            "cache %s: cannot be used: %s; %s is made for this process alone. Set AMD_PLUGIN_CACHE", folder, error, kind
        )
    own = own_root() / folder.name
    if not own.exists():
        _fill(own, make, description)
    return own


def _fill(folder: Path, make: Callable[[Path], None], description: str) -> None:
    with replaced_folder(folder) as draft, one_thread():
        make(draft)
        (draft / MADE_OF).write_text(description, encoding="utf-8")
        # Last, of everything else: a folder without it is not complete.
        (draft / CHECKSUMS).write_text(json.dumps(checksums(draft)), encoding="utf-8")


def _problem(folder: Path) -> str:
    """What is wrong with a folder of the cache; empty where it is as it was made."""
    try:
        expected = read(folder / CHECKSUMS, dict[str, tuple[int, str]], "It is made anew")
        return changed(folder, expected) if MADE_OF in expected else f"{CHECKSUMS} names no {MADE_OF}"
    except InputError as error:
        return str(error)


@lru_cache
def own_root() -> Path:
    """A folder that ends with this process, in place of a cache that cannot be used."""
    folder = tempfile.TemporaryDirectory(prefix="amd-plugin-")
    _kept.append(folder)
    return Path(folder.name)


@lru_cache
def _code() -> str:
    """The source of everything that makes or measures what is kept."""
    package = Path(__file__).parent
    files = [package / name for name in ("cache.py", "metrics.py", "randomness.py", "threads.py", "maths/prediction.py")]
    files += sorted(path for folder in ("data", "models", "schedule", "tasks") for path in (package / folder).rglob("*.py"))
    return "".join(path.read_text(encoding="utf-8") for path in files)
