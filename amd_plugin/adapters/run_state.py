"""What of AMD a host's checkpoint holds, JSON-able: running statistics, the alarm's history, the memory of failures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from amd_plugin.adapters.failures import Failures
from amd_plugin.adapters.validation import Validation
from amd_plugin.hookspecs import Objective


def state_of(objective: Objective, validation: Validation | None, failures: Failures | None) -> dict[str, Any]:
    """The state of a run's parts, of which those that are None are left out."""
    parts = {"objective": objective, "validations": validation, "failures": failures}
    return {name: part.state_dict() for name, part in parts.items() if part is not None}


def restore(
    state: Mapping[str, Any], objective: Objective, validation: Validation | None, failures: Failures | None
) -> None:  # fmt: skip
    """Restores what `state_of` gave, to the parts that the run has; a part that `state` does not have starts anew."""
    objectives = {name: value for name, value in state.items() if name not in ("validations", "failures")}
    objective.load_state_dict(objectives.get("objective", objectives))  # before 0.1.0 some hosts kept it without its name
    if validation is not None:
        validation.load_state_dict(state.get("validations", []))
    if failures is not None:
        failures.load_state_dict(state.get("failures", {}))
