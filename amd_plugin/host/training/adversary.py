"""The host's side of an adversarial branch: a discriminator on the fake score's features, its turn, and its verdict."""

from __future__ import annotations

from collections.abc import Callable

import torch
from accelerate import Accelerator
from torch import Tensor

from amd_plugin.config import TrainConfig
from amd_plugin.host.training.batch import Batch
from amd_plugin.host.training.learner import Learner
from amd_plugin.host.training.real_samples import RealSamples
from amd_plugin.maths.adversarial import Adversarial
from amd_plugin.models.discriminator import features_of, make_discriminator
from amd_plugin.models.family import Caller, Condition, Features
from amd_plugin.models.roles import Role
from amd_plugin.randomness import generator
from amd_plugin.schedule import NoiseSchedule


class Adversary:
    """Tells student samples from real ones, both noised, by what the fake score makes of them.

    Args:
        losses: the objective's.
        where: the features to look at.
        fake_score: whose; never trained by this branch.
        caller: calls it.
        schedule: of the noise.
        condition: labels -> what the networks are conditioned on.
        real: the other side.
        train: sizes, rates and seed.
        accelerator: joins gradients.

    Attributes:
        learner: trains the head.
    """

    def __init__(
        self, losses: Adversarial, where: Features, fake_score: Role, caller: Caller, schedule: NoiseSchedule,
        condition: Callable[[Tensor], Condition], real: RealSamples, train: TrainConfig, accelerator: Accelerator,
    ):  # fmt: skip
        self._losses, self._where, self._fake_score, self._caller = losses, where, fake_score, caller
        self._schedule, self._condition, self._real = schedule, condition, real
        head = make_discriminator(where, generator(train.seed, "discriminator").initial_seed()).to(accelerator.device)
        rate = train.discriminator_lr or train.fake_lr
        self.learner = Learner(Role(head), "discriminator", rate, train, accelerator)

    def turn(self, batch: Batch, parts: list[slice], rollouts: list[Tensor], timestep: Tensor, step: int) -> dict[str, Tensor]:
        """One update of the head on `rollouts` and as many real samples, noised to `timestep` [B]; returns its metrics."""
        real, labels = self._real.draw(len(timestep), batch.generator("real"), batch.position)
        noise, blur = batch.normal("discriminator noise"), batch.normal("discriminator blur")
        losses = []
        for rows, x0 in zip(parts, rollouts, strict=True):
            samples = [(real[rows], labels[rows]), (x0, batch.labels[rows])]
            if self._losses.r1:
                samples.append((real[rows] + self._losses.r1_sigma * blur[rows], labels[rows]))
            with torch.no_grad():
                seen = [self._features(x, noise[rows], timestep[rows], asked) for x, asked in samples]
            logits = self.learner.role(torch.cat(seen)).chunk(len(seen))
            loss = self._losses.discriminator_loss(*logits)
            self.learner.backward(loss / len(parts))
            losses.append(loss.detach())
        norm = self.learner.update(step, {"real": real})
        return {"loss/discriminator": torch.stack(losses).mean(), "grad_norm/discriminator": norm}

    def student_loss(self, x0: Tensor, batch: Batch, rows: slice, timestep: Tensor) -> Tensor:
        """Scalar, with gradients to x0 [rows] alone: neither fake score nor head get any of their own."""
        with self._fake_score.without_grad(), self.learner.role.without_grad():
            seen = self._features(x0, batch.normal("discriminator noise")[rows], timestep[rows], batch.labels[rows])
            return self._losses.student_loss(self.learner.role(seen))

    def _features(self, x0: Tensor, noise: Tensor, timestep: Tensor, labels: Tensor) -> Tensor:
        x_t = self._schedule.level(timestep).add_noise(x0, noise)
        return features_of(self._caller, self._fake_score, self._where, x_t, timestep, self._condition(labels))
