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


def prefixed(metrics: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """`metrics` as a host's tracker names them: ``reward/NAME`` as it is, all others after `prefix`."""
    return {name if name.startswith("reward/") else prefix + name: value for name, value in metrics.items()}
