"""Finds the adapter under test."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import pytest


@pytest.fixture
def adapter(request: pytest.FixtureRequest) -> Any:
    """A new instance of the class that ``--adapter`` names, found in the current folder, too."""
    path = request.config.getoption("--adapter")
    module, colon, name = (path or "").partition(":")
    if not (module and colon and name):
        raise pytest.UsageError(f"--adapter: must be MODULE:CLASS, e.g. my_package.conformance:MyAdapter, got {path!r}")
    folder = str(request.config.invocation_params.dir)
    if folder not in sys.path:  # `pytest` leaves it out, unlike `python -m pytest`
        sys.path.insert(0, folder)
    try:
        return getattr(importlib.import_module(module), name)()
    except (ImportError, AttributeError) as error:
        raise pytest.UsageError(f"--adapter {path}: {type(error).__name__}: {error}") from error
