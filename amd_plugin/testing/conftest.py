"""Finds the adapter under test."""

from __future__ import annotations

import importlib
from typing import Any

import pytest


@pytest.fixture
def adapter(request: pytest.FixtureRequest) -> Any:
    """A new instance of the class that ``--adapter`` names."""
    path = request.config.getoption("--adapter")
    module, colon, name = (path or "").partition(":")
    if not (module and colon and name):
        raise pytest.UsageError(f"--adapter: must be MODULE:CLASS, e.g. my_package.conformance:MyAdapter, got {path!r}")
    try:
        return getattr(importlib.import_module(module), name)()
    except (ImportError, AttributeError) as error:
        raise pytest.UsageError(f"--adapter {path}: {type(error).__name__}: {error}") from error
