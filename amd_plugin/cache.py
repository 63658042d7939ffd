"""Things worth making once: teachers and classifiers, kept by a hash of everything that made them.

They live under ``$AMD_PLUGIN_CACHE``, or ``amd-plugin`` in the user's cache folder. Deleting them costs time only.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import diffusers
import torch
from filelock import FileLock

from amd_plugin.errors import InputError


def root() -> Path:
    """The folder everything is kept in."""
    if "AMD_PLUGIN_CACHE" in os.environ:
        return Path(os.environ["AMD_PLUGIN_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "amd-plugin"


def cached(kind: str, made_of: Mapping[str, Any], make: Callable[[Path], None]) -> Path:
    """The folder that `make` filled, now or in an earlier run; processes that ask at the same time wait for one of them.

    Args:
        kind: first part of the folder's name.
        made_of: JSON-able; all that the result depends on beside our own code and the libraries' versions, which are added.
        make: fills the empty folder it is given.
    """
    recipe = json.dumps(dict(made_of), sort_keys=True)
    digest = hashlib.sha256("\0".join((recipe, _code(), torch.__version__, diffusers.__version__)).encode()).hexdigest()[:16]
    folder = root() / f"{kind}-{digest}"
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cache folder {folder.parent}: cannot be made: {error}. Set AMD_PLUGIN_CACHE") from error
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
            try:
                make(draft)
                (draft / "made_of.json").write_text(recipe)
                draft.rename(folder)
            finally:
                shutil.rmtree(draft, ignore_errors=True)
    return folder


@lru_cache
def _code() -> str:
    """The source of everything that makes or measures what is kept."""
    package = Path(__file__).parent
    files = [package / name for name in ("metrics.py", "randomness.py", "maths/prediction.py")]
    files += sorted(path for folder in ("data", "models", "schedule", "tasks") for path in (package / folder).rglob("*.py"))
    return "".join(path.read_text() for path in files)
