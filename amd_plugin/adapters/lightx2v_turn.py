"""What one turn of LightX2V's trainers leaves behind: predictions, noise levels and targets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from amd_plugin.adapters.failures import Shown
from amd_plugin.errors import RunError

_ALL_OWN = Shown(torch.empty(0), None)


@dataclass
class Turn:
    """The running turn. Velocities are those of flow matching, ``x0 = x_t - sigma v``.

    Attributes:
        role: ``student`` or ``fake_score``.
        condition: the host's condition of the samples.
        replaces: whether AMD's loss replaces the host's.
        x0: student samples [B, ...]; None before the rollout.
        fake: x_t, its noise levels [B] and the fake score's velocity.
        cond: the teacher's conditional velocity.
        fake_again: the call of the fake score that `fake` is of.
        target: the fake score's target velocity.
        shown: what the fake score is trained on, if remembered failures replaced some of the turn's samples.
        matched: whether the turn's matching loss was computed; calls after it are those of the host's tricks.
    """

    role: str
    condition: Any
    replaces: bool
    x0: Tensor | None = None
    fake: tuple[Tensor, Tensor, Tensor] | None = None
    cond: Tensor | None = None
    fake_again: Callable[[], Tensor] | None = None
    target: Tensor | None = None
    shown: Shown = _ALL_OWN
    matched: bool = False

    @property
    def sigma(self) -> Tensor:
        """Noise levels [B] of x_t."""
        if self.fake is None:
            raise RunError("lightx2v_train: a turn makes no call of the fake score before its loss. Use a newer amd-plugin")
        return self.fake[1]

    def fake_x0_again(self) -> Tensor:
        """The fake score's prediction of x0 [B, ...], made again."""
        if self.fake is None or self.fake_again is None:
            raise RunError("lightx2v_train: a student turn lacks a call of the fake score. Use a newer amd-plugin")
        return self._clean(self.fake_again())

    def _clean(self, velocity: Tensor) -> Tensor:
        """x0 [B, ...] from the velocity at x_t."""
        assert self.fake is not None  # noqa: S101
        x_t, sigma, _ = self.fake
        return x_t - sigma.reshape(-1, *[1] * (x_t.dim() - 1)) * velocity

    def record_target(self, build: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Calls `build`, and keeps its result as the fake score's target."""
        self.target = build(*args, **kwargs)
        return self.target

    def conditional_x0(self) -> Tensor:
        """The teacher's conditional prediction of x0 [B, ...]."""
        if self.fake is None or self.cond is None:
            raise RunError("lightx2v_train: a student turn lacks a call of teacher or fake score. Use a newer amd-plugin")
        return self._clean(self.cond)

    def unconditional_x0(self, cond: Tensor, guided: Tensor, scale: float) -> Tensor | None:
        """The unconditional prediction [B, ...] for which guidance in the standard form gives `guided`; None at scale 1.

        Whatever the host's guidance does beyond the standard form, such as its rescaling by ``cfg_norm``, counts as guidance.
        """
        if scale == 1:
            return None
        cond, guided = cond.float(), guided.float()
        return cond - (guided - cond) / (scale - 1)

    def embeddings(self) -> Tensor | None:
        """The first tensor [B, ...] of the condition, by which samples are grouped where there are no prompts."""
        values = self.condition.values() if isinstance(self.condition, Mapping) else [self.condition]
        return next((value for value in values if isinstance(value, Tensor)), None)


def pictures(decoded: list[Any]) -> Tensor:
    """Media [B, C, H, W] or [B, C, T, H, W] in [0, 1] from PIL images, or from a list of frames per sample."""
    frames = [np.stack([np.asarray(f) for f in item]) if isinstance(item, list) else np.asarray(item) for item in decoded]
    media = torch.from_numpy(np.stack(frames)).float() / 255
    return media.movedim(-1, 1)
