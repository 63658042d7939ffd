"""The adversarial branch of a run: a discriminator on the fake score's features, its turn, and its loss on the student."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import Tensor

from amd_plugin.config import TrainConfig
from amd_plugin.host.training.batch import Batch
from amd_plugin.host.training.forward import Forward
from amd_plugin.host.training.learner import Learner
from amd_plugin.host.training.real_samples import RealSamples
from amd_plugin.host.training.turn import Trace, traced
from amd_plugin.maths.adversarial import Adversarial
from amd_plugin.models.discriminator import features_of, make_discriminator
from amd_plugin.models.roles import Role
from amd_plugin.randomness import generator


class Adversary:
    """A discriminator between noised student samples and noised real samples, on features of the fake score.

    Args:
        losses: the objective's adversarial losses.
        forward: the networks; this branch never trains the fake score.
        real: the real samples.
        train: the recipe's train section.
        accelerator: the run's processes.

    Attributes:
        learner: the optimizer of the discriminator's head.
    """

    def __init__(
        self, losses: Adversarial, forward: Forward, real: RealSamples, train: TrainConfig, accelerator: Accelerator
    ):  # fmt: skip
        self._losses, self._forward, self._real = losses, forward, real
        self._fake_score = forward.roles.fake_score
        self._place = forward.backbone.family.features(self._fake_score.network)
        head = make_discriminator(self._place, generator(train.seed, "discriminator").initial_seed()).to(accelerator.device)
        rate = train.discriminator_lr or train.fake_lr
        self.learner = Learner(Role(head), rate, train, accelerator)

    def timestep(self, batch: Batch) -> Tensor:
        """The timesteps [B] at which the discriminator sees the samples of `batch`."""
        return self._forward.schedule.timestep(self._forward.noise_levels(batch, "discriminator"))

    def gradients(self, batch: Batch, parts: list[slice], rollouts: list[Tensor]) -> tuple[dict[str, Tensor], Trace]:
        """Accumulates the head's gradients on `rollouts` and as many real samples; returns metrics, and what was computed.

        Args:
            batch: the joined batch.
            parts: the rows of each micro-batch.
            rollouts: the student's samples of each micro-batch.
        """
        timestep, trace = self.timestep(batch), Trace()
        own, size = slice(parts[0].start, parts[-1].stop), len(rollouts[0])
        reals, labels = self._real.draw(len(timestep), batch.generator("real"), batch.updates_before, own)
        noise, blur = batch.normal("discriminator noise"), batch.normal("discriminator blur")
        losses = []
        for rows, x0, real in self.learner.micro_batches([*zip(parts, rollouts, reals.split(size), strict=True)]):
            self._fake_score.rung = batch.rungs_of(rows)
            samples = [(real, labels[rows]), (x0, batch.labels[rows])]
            if self._losses.r1:
                samples.append((real + self._losses.r1_sigma * blur[rows], labels[rows]))
            with torch.no_grad():
                features = [self._features(x, noise[rows], timestep[rows], of_x) for x, of_x in samples]
            logits = self.learner.role(torch.cat(features)).chunk(len(features))
            loss = self._losses.discriminator_loss(*logits)
            self.learner.backward(loss / len(parts))
            losses.append(loss.detach())
            trace.append(traced({"x0": x0, "real": real, "loss": loss.expand(len(x0))}))
        return {"loss/discriminator": torch.stack(losses).mean()}, trace

    def student_loss(self, x0: Tensor, batch: Batch, rows: slice, timestep: Tensor) -> Tensor:
        """The student's adversarial loss, a scalar with gradients to `x0` [b, ...] only, none to fake score or head.

        Args:
            x0: the student's samples.
            batch: the joined batch.
            rows: the rows of the micro-batch.
            timestep: the timesteps [B] of the joined batch.
        """
        with self._fake_score.without_grad(), self.learner.role.without_grad():
            features = self._features(x0, batch.normal("discriminator noise")[rows], timestep[rows], batch.labels[rows])
            return self._losses.student_loss(self.learner.role(features))

    def _features(self, x0: Tensor, noise: Tensor, timestep: Tensor, labels: Tensor) -> Tensor:
        forward = self._forward
        x_t = forward.schedule.level(timestep).add_noise(x0, noise)
        return features_of(forward.caller, self._fake_score, self._place, x_t, timestep, forward.condition(labels))
