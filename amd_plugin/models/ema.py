"""The moving average of a role's weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.optim import swa_utils

from amd_plugin.models.roles import Role


class EMA:
    """The exponential moving average of a role's weights, which is evaluated and exported.

    Args:
        role: the role.
        decay: the share of the average that one update keeps.

    Attributes:
        weights: the averaged weights that this process holds, in fp32 and laid out like `Role.master_weights`.
    """

    def __init__(self, role: Role, decay: float):
        self._role, self._updates = role, 0
        self._blend = swa_utils.get_ema_multi_avg_fn(decay)
        self.weights = [weight.clone() for weight in role.master_weights()]

    @torch.no_grad()
    def update(self) -> None:
        """Blends in the role's current weights; the first update copies them."""
        if self._updates == 0:
            torch._foreach_copy_(self.weights, self._role.master_weights())
        else:
            self._blend(self.weights, self._role.master_weights(), self._updates)
        self._updates += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the role has its averaged weights. Enter on every process if each holds a share of them."""
        masters = self._role.master_weights()
        trained = [weight.clone() for weight in masters]
        torch._foreach_copy_(masters, self.weights)
        self._role.sync_from_masters()
        try:
            yield
        finally:
            torch._foreach_copy_(masters, trained)
            self._role.sync_from_masters()

    def state_dict(self) -> dict[str, Any]:
        """The average's part of a checkpoint."""
        return {"updates": self._updates, "weights": self._role.named(self.weights)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the result of `state_dict`."""
        self._updates = int(state["updates"])
        self._role.take_named(self.weights, state["weights"])
