"""What of AMD a host's checkpoint holds: running statistics, the alarm's history, failures, last metrics, plugins' states."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from amd_plugin.adapters.bridge import HostBridge
from amd_plugin.adapters.failures import Failures
from amd_plugin.adapters.host_metrics import Tracked
from amd_plugin.adapters.validation import Validation
from amd_plugin.errors import unreadable_is_input_error
from amd_plugin.json_files import read

Saved = TypeVar("Saved")
ADVICE = "Resume from an earlier checkpoint, or delete this file: AMD's running statistics start anew then"


def state_of(
    bridge: HostBridge, validation: Validation | None, failures: Failures | None, tracked: Tracked | None = None
) -> dict[str, Any]:  # fmt: skip
    """The state of a run's parts, of which those that are None are left out."""
    parts = {"objective": bridge.objective, "validations": validation, "failures": failures, "tracked": tracked}
    state = {name: part.state_dict() for name, part in parts.items() if part is not None}
    plugins = {} if bridge.plugins is None else dict(bridge.plugins.hook.distill_state_dict())
    return state | {"plugins": plugins} if plugins else state


def restore(
    state: Mapping[str, Any], bridge: HostBridge, validation: Validation | None, failures: Failures | None,
    tracked: Tracked | None = None,
) -> None:  # fmt: skip
    """Restores what `state_of` gave, to the parts that the run has; a part that `state` does not have starts anew."""
    objectives = {name: value for name, value in state.items() if name not in ("validations", "failures", "plugins", "tracked")}
    bridge.objective.load_state_dict(
        objectives.get("objective", objectives)
    )  # before 0.1.0 some hosts kept it without its name
    if validation is not None:
        validation.load_state_dict(state.get("validations", []))
    if failures is not None:
        failures.load_state_dict(state.get("failures", {}))
    if tracked is not None:
        tracked.load_state_dict(state.get("tracked", {}))
    if bridge.plugins is not None:
        bridge.plugins.hook.distill_load_state_dict(state=state.get("plugins", {}))


@contextmanager
def restoring(path: Path, kind: type[Saved]) -> Iterator[Saved]:
    """The state in the JSON file `path`, for the block that restores it.

    Args:
        path: the file.
        kind: type of its content.

    Raises:
        InputError: naming the file, where it holds something else, or the block fails with what it holds.
    """
    state = read(path, kind, ADVICE)
    with unreadable_is_input_error(f"{path}: does not fit this run", f" {ADVICE}"):
        yield state
