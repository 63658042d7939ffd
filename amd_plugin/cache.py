"""What is made once and kept, e.g. teachers and classifiers, by a hash of everything that it depends on.

It lies under ``$AMD_PLUGIN_CACHE``, or ``amd-plugin`` in the user's cache folder. Deleting it costs time only.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from amd_plugin.atomic import replaced_folder
from amd_plugin.errors import InputError
from amd_plugin.threads import one_thread


def root() -> Path:
    """The folder of everything that is kept."""
    if "AMD_PLUGIN_CACHE" in os.environ:
        return Path(os.environ["AMD_PLUGIN_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "amd-plugin"


def cached(kind: str, made_of: Mapping[str, Any], make: Callable[[Path], None]) -> Path:
    """The folder that `make` filled, now or in an earlier run; of several processes one makes it and the others wait.

    It is made with one thread, so that it is the same to the bit whichever command makes it first.

    Args:
        kind: first part of the folder's name.
        made_of: JSON-able; everything that the result depends on beside this package's code and the libraries' versions,
            which are added here.
        make: function that fills the empty folder it is given.

    Raises:
        InputError: where the cache folder cannot be made.
    """
    description = json.dumps(dict(made_of), sort_keys=True)
    digest = hashlib.sha256("\0".join((description, _code(), torch.__version__, version("diffusers"))).encode()).hexdigest()[
        :16
    ]
    folder = root() / f"{kind}-{digest}"
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cache folder {folder.parent}: cannot be made: {error}. Set AMD_PLUGIN_CACHE") from error
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            with replaced_folder(folder) as draft, one_thread():
                make(draft)
                (draft / "made_of.json").write_text(description)
    return folder


@lru_cache
def _code() -> str:
    """The source of everything that makes or measures what is kept."""
    package = Path(__file__).parent
    files = [package / name for name in ("cache.py", "metrics.py", "randomness.py", "threads.py", "maths/prediction.py")]
    files += sorted(path for folder in ("data", "models", "schedule", "tasks") for path in (package / folder).rglob("*.py"))
    return "".join(path.read_text() for path in files)
