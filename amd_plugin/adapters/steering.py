"""`HostBridge` with the names it had before version 0.1.0. This file goes with version 0.2."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from torch import Tensor

from amd_plugin.adapters.bridge import HostBridge
from amd_plugin.moved import names_of

warnings.warn(f"{__name__} is now amd_plugin.adapters.bridge; the old name goes with version 0.2", FutureWarning, stacklevel=2)
__getattr__ = names_of(__name__)


class Steering(HostBridge):
    """`HostBridge` by its old names."""

    begin, levels = HostBridge.start_turn, HostBridge.move_noise_levels

    def __call__(self, x0: Tensor, groups: Tensor, prompts: Sequence[str] | None = None) -> tuple[Tensor, Tensor]:
        """See `advantages`, and `weights` for all noise levels alike, [B] each."""
        return self.advantages(x0, groups, prompts), self.weights()

    @property
    def active(self) -> bool:
        """See `uses_reward`."""
        return self.uses_reward

    @property
    def moves(self) -> bool:
        """See `moves_noise_levels`."""
        return self.moves_noise_levels

    @property
    def sensed(self) -> dict[str, Tensor]:
        """See `signal_fields`."""
        return self.signal_fields
