"""The option ``--adapter`` of the conformance tests; pytest loads this module by entry point, so it imports nothing heavy."""

from __future__ import annotations

from typing import Any


def pytest_addoption(parser: Any) -> None:
    """Adds ``--adapter``."""
    parser.addoption("--adapter", metavar="MODULE:CLASS", help="adapter under test, for amd_plugin.testing")
