"""The networks' predictions for a batch of student samples, and the direction made of them.

Shape legend: B samples, then any trailing dimensions; x0 space throughout (see `amd_plugin.maths.prediction` for getting
there). Guidance is the standard form ``uncond + w (cond - uncond)``: w = 1 is no guidance.

One letter, two meanings: `Signals.sigma` is a fraction of the noise schedule, 0 at clean data and 1 at pure noise, whatever
the schedule. `NoiseLevel.sigma` in `amd_plugin.maths.prediction` is the coefficient of the noise in x_t. The two are equal for
flow matching without shift only. Recipe keys that end in ``_sigma`` mean the fraction; local variables call it `noise_level`.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from amd_plugin.maths.prediction import widen


class Signals(NamedTuple):
    """Clean-data predictions for one batch of student samples.

    Attributes:
        x0: student samples [B, ...]; gradients flow to these, and through `reward` where one is given.
        real_cond: teacher's prediction of x0 from x_t with its condition [B, ...].
        real_uncond: teacher's prediction without condition [B, ...]; None where guidance is not used (w = 1).
        fake: fake score's prediction from the same x_t [B, ...].
        sigma: noise level of x_t [B], as a fraction in [0, 1] of the schedule; read by windows and by metrics only.
        advantage: group advantage of each sample [B], see `amd_plugin.group_advantage`; None means 0 everywhere.
        guide_cond: teacher's conditional prediction at the guidance term's own noise level [B, ...].
        guide_uncond: unconditional partner of `guide_cond` [B, ...]. Give both or neither; without them guidance shares
            the noise level of x_t.
        reward: differentiable reward of x0 [B], with its graph; NaN where it failed. Read only by objectives that follow
            its gradient (`DMDObjective.reward_gradient`).
        groups: prompt of each sample [B], as equal numbers for equal prompts; read by the coherence diagnostic,
            and by objectives that need it.
        fake_bad: fake score's prediction for a failed sample, from the same x_t [B, ...]; see
            `amd_plugin.maths.advantage_guidance`.
        fake_good: fake score's prediction for a sample that succeeded [B, ...]. Give both or neither.
        advantage_factor: factor of advantage guidance [B], at least 0, from a host's schedule; None means 1 everywhere.
        batch_advantage: advantages [N] of the whole batch, over all micro-batches and processes; None where these B samples
            are the whole batch. Statistics of the batch (the static control, the implied tilt) use it.
        rung: exit rung of each sample [B], from 0, on the CPU, by which `reward` is divided by the spread of its own rung; also
            read by metrics. None for a student of one step.
        log_density: log-density of one of the transitions by which the student came to x0 [B], with its graph; a mean over the
            dimensions of a sample, up to a constant. 0 where x0 is a first prediction, which follows from noise alone.
        student: student's prediction of x0 from x0 itself, re-noised to its exit rung [B, ...], with its graph.
        anchor: x0 [B, ...] that the teacher's own path from the student's noise points to, for a first prediction; else None.
        batch_rung: exit rungs [N] of the whole batch, on the CPU, so that metrics by rung have equal names in all micro-batches
            and processes; None where `rung` is of the whole batch.

    Example:
        >>> x0 = torch.tensor([[0.0], [1.0]])
        >>> signals = Signals(x0, real_cond=x0 + 2, real_uncond=x0 + 1, fake=x0)
        >>> signals.augmentation()
        tensor([[1.],
                [1.]])
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
    batch_advantage: Tensor | None = None
    rung: Tensor | None = None
    fake_bad: Tensor | None = None
    fake_good: Tensor | None = None
    advantage_factor: Tensor | None = None
    log_density: Tensor | None = None
    student: Tensor | None = None
    anchor: Tensor | None = None
    batch_rung: Tensor | None = None

    @property
    def joined(self) -> Tensor | None:
        """The name of `batch_advantage` before version 0.1.0."""
        return self.batch_advantage

    def augmentation(self) -> Tensor:
        """The CFG augmentation d_ca = cond - uncond [B, ...], 0 where no unconditional prediction is given."""
        cond, uncond = self.real_cond, self.real_uncond
        if self.guide_cond is not None:
            cond, uncond = self.guide_cond, self.guide_uncond
        if uncond is None:
            return torch.zeros_like(widen(self.real_cond))
        return widen(cond.detach()) - widen(uncond.detach())

    def contrast(self) -> Tensor | None:
        """The contrast F_good - F_bad [B, ...], fp32 or wider, no grad; None without these predictions."""
        if self.fake_bad is None or self.fake_good is None:
            return None
        return widen(self.fake_good.detach()) - widen(self.fake_bad.detach())

    def per_sample(self, values: Tensor) -> Tensor:
        """`values` [B], shaped to multiply a prediction [B, ...], in its (widened) dtype."""
        dtype = torch.promote_types(self.real_cond.dtype, torch.float32)
        return values.to(self.real_cond.device, dtype).reshape(-1, *[1] * (self.x0.dim() - 1))

    def check(self) -> None:
        """Checks that all shapes match x0's. Call it once, where signals enter.

        Raises:
            ValueError: for the first member that does not match, by name.
        """
        predictions = ("real_cond", "real_uncond", "fake", "guide_cond", "guide_uncond", "fake_bad", "fake_good")
        for name in (*predictions, "student", "anchor"):
            value = getattr(self, name)
            if value is not None and value.shape != self.x0.shape:
                raise ValueError(f"Signals.{name}: must have x0's shape {tuple(self.x0.shape)}, got {tuple(value.shape)}")
        for name in ("sigma", "advantage", "reward", "groups", "rung", "advantage_factor", "log_density"):
            value = getattr(self, name)
            if value is not None and value.shape != self.x0.shape[:1]:
                raise ValueError(f"Signals.{name}: must have shape {tuple(self.x0.shape[:1])}, got {tuple(value.shape)}")
        if (self.guide_cond is None) != (self.guide_uncond is None):
            raise ValueError("Signals.guide_cond and guide_uncond: give both or neither")
        if (self.fake_bad is None) != (self.fake_good is None):
            raise ValueError("Signals.fake_bad and fake_good: give both or neither")


class Direction(NamedTuple):
    """Where the student should move, in terms that AMD weighs separately. Tensors [B, ...], fp32 or wider, no grad.

    Attributes:
        match: distribution-matching term, d_real_cond - d_fake.
        guide: guidance term (CFG augmentation), (w - 1) d_ca.
        signals: predictions it was made of, for transforms that need them.
        guidance_scale: the w of `guide`, before any per-sample weight.
        alpha: factor of `guide` per sample [B], set by `amd_plugin.maths.operators.adapt`; None without one.
        beta: factor of `match` per sample [B], likewise.
        advance: advantage guidance, gamma P(bad) (F_good - F_bad), see `amd_plugin.maths.advantage_guidance`; None without it.
    """

    match: Tensor
    guide: Tensor
    signals: Signals
    guidance_scale: float
    alpha: Tensor | None = None
    beta: Tensor | None = None
    advance: Tensor | None = None

    def total(self) -> Tensor:
        """The sum of all terms [B, ...]."""
        total = self.match + self.guide
        return total if self.advance is None else total + self.advance
