"""What the networks say about a student's samples, and the direction made of it.

Shape legend: B samples, then any trailing dimensions; x0 space throughout (see `amd_plugin.maths.prediction` for getting
there). Guidance is the standard form ``uncond + w (cond - uncond)``: w = 1 is no guidance.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from amd_plugin.maths.prediction import widen


class Signals(NamedTuple):
    """Clean-data predictions for one batch of student samples, METHOD section "Setting".

    Attributes:
        x0: the student's samples [B, ...]; gradients flow to it, and to `reward` where there is one.
        real_cond: the teacher's prediction of x0 from x_t with its condition [B, ...].
        real_uncond: the same without condition [B, ...]; None where guidance is not used (w = 1).
        fake: the fake score's prediction from the same x_t [B, ...].
        sigma: noise level of x_t [B], in the host's units; only operators with windows read it.
        advantage: group advantage of each sample [B], see `amd_plugin.group_advantage`; None means 0 everywhere.
        guide_cond: the teacher's conditional prediction at a noise level of its own for the guidance term [B, ...].
        guide_uncond: its unconditional partner [B, ...]. Both or neither; without them guidance shares the level of x_t.
        reward: a differentiable reward of x0 [B], with its graph; NaN for a failed one. Only for objectives that follow
            its gradient (`DMDObjective.reward_gradient`).
        groups: [B], the same number for samples of one prompt; only the coherence diagnostic reads it.
        joined: advantages [N] of the whole batch, over micro-batches and processes, that these B samples are a part of; None
            where they are all of it. What is a property of the batch (the static control, the implied tilt) is taken there.
    """

    x0: Tensor
    real_cond: Tensor
    real_uncond: Tensor | None
    fake: Tensor
    sigma: Tensor | None = None
    advantage: Tensor | None = None
    guide_cond: Tensor | None = None
    guide_uncond: Tensor | None = None
    reward: Tensor | None = None
    groups: Tensor | None = None
    joined: Tensor | None = None

    def augmentation(self) -> Tensor:
        """The CFG augmentation d_ca = cond - uncond [B, ...], 0 where no unconditional prediction is given."""
        cond, uncond = self.real_cond, self.real_uncond
        if self.guide_cond is not None:
            cond, uncond = self.guide_cond, self.guide_uncond
        if uncond is None:
            return torch.zeros_like(widen(self.real_cond))
        return widen(cond.detach()) - widen(uncond.detach())

    def per_sample(self, values: Tensor) -> Tensor:
        """Shapes `values` [B] so that they multiply a prediction [B, ...], in its (widened) dtype."""
        dtype = torch.promote_types(self.real_cond.dtype, torch.float32)
        return values.to(self.real_cond.device, dtype).reshape(-1, *[1] * (self.x0.dim() - 1))

    def check(self) -> None:
        """Raises ValueError, naming the member, where shapes do not belong together. Call once, at the boundary."""
        for name in ("real_cond", "real_uncond", "fake", "guide_cond", "guide_uncond"):
            value = getattr(self, name)
            if value is not None and value.shape != self.x0.shape:
                raise ValueError(f"Signals.{name}: must have x0's shape {tuple(self.x0.shape)}, got {tuple(value.shape)}")
        for name in ("sigma", "advantage", "reward", "groups"):
            value = getattr(self, name)
            if value is not None and value.shape != self.x0.shape[:1]:
                raise ValueError(f"Signals.{name}: must have shape {tuple(self.x0.shape[:1])}, got {tuple(value.shape)}")
        if (self.guide_cond is None) != (self.guide_uncond is None):
            raise ValueError("Signals.guide_cond and guide_uncond: give both or neither")


class Direction(NamedTuple):
    """Where the student should move, in the two parts that AMD weighs apart. All tensors [B, ...], fp32 or wider, no grad.

    Attributes:
        match: distribution matching, d_real_cond - d_fake.
        guide: CFG augmentation, (w - 1) d_ca.
        signals: what it was made of, for the transforms that need it.
        guidance_scale: the w of `guide`, before any per-sample weight.
        alpha, beta: [B], what `amd_plugin.maths.operators.adapt` multiplied `guide` and `match` by; None for nothing.
    """

    match: Tensor
    guide: Tensor
    signals: Signals
    guidance_scale: float
    alpha: Tensor | None = None
    beta: Tensor | None = None

    def total(self) -> Tensor:
        """Match + guide [B, ...]."""
        return self.match + self.guide
