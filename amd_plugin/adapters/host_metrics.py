"""Metrics for a host's tracker."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def stacked(metrics: Mapping[str, Tensor]) -> Tensor:
    """0-dim tensors as one fp32 tensor, on the device that some of them are on, the CPU if none."""
    values = [value.detach().reshape(()) for value in metrics.values()]
    device = next((value.device for value in values if value.device.type != "cpu"), torch.device("cpu"))
    return torch.stack([value.to(device, torch.float32, non_blocking=True) for value in values])


class Tracked:
    """The metrics of a run for a host that averages them over turns.

    A metric that is NaN, as of noise levels without samples, keeps its last value: it would make the whole average NaN.

    Args:
        prefix: start of every name but those of rewards.
    """

    def __init__(self, prefix: str):
        self._prefix, self._last = prefix, dict[str, Tensor]()

    def named(self, metrics: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """0-dim tensors of a turn, as the host's tracker names them; NaN only for what no turn has measured yet."""
        for name, value in metrics.items():
            last = self._last.get(name, value).to(value.device, non_blocking=True)
            self._last[name] = torch.where(value.isnan(), last, value).detach()
        return prefixed({name: self._last[name] for name in metrics}, self._prefix)

    def state_dict(self) -> dict[str, float]:
        """JSON-able last values, so that a resumed run tells the host what a straight one does."""
        return {name: value.item() for name, value in self._last.items() if not value.isnan()}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Restores what `state_dict` gave."""
        self._last = {name: torch.tensor(value) for name, value in state.items()}


def prefixed(metrics: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """`metrics` as a host's tracker names them: ``reward/NAME`` as it is, all others after `prefix`."""
    return {name if name.startswith("reward/") else prefix + name: value for name, value in metrics.items()}
