"""A role that is trained: its optimizer, learning rate, and one guarded update."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from amd_plugin.config import TrainConfig
from amd_plugin.errors import RunError
from amd_plugin.models.lazy_weights import TensorReader
from amd_plugin.models.roles import Role
from amd_plugin.sharding.engine import engine_for
from amd_plugin.sharding.shares import Moments


class Learner:
    """Trains one role.

    Args:
        role: whose parameters; its network is wrapped for several processes here, unless other roles share it.
        name: for messages.
        learning_rate: its peak.
        train: betas, clipping, warm-up and decay.
        accelerator: joins gradients over processes.
    """

    def __init__(self, role: Role, name: str, learning_rate: float, train: TrainConfig, accelerator: Accelerator):
        self.role, self._name, self._peak, self._train, self._accelerator = role, name, learning_rate, train, accelerator
        optimizer = torch.optim.Adam(role.parameters(), lr=learning_rate, betas=train.betas, fused=True)
        if role.shared:
            self.optimizer: Any = accelerator.prepare(optimizer)
        else:
            role.wrapped, self.optimizer = accelerator.prepare(role.network, optimizer)

    def backward(self, loss: Tensor) -> None:
        """Adds the gradients of `loss` to the role's."""
        # Recomputed activations, and gradients of a shared base, belong to whichever role is active.
        self.role.activate()
        self._accelerator.backward(loss)

    def update(self, step: int, suspects: dict[str, Any]) -> Tensor:
        """Clips, checks and steps; returns the gradient norm.

        Args:
            step: student updates so far.
            suspects: tensors to look into where the gradient is not finite.

        Raises:
            RunError: for a gradient that is not finite; nothing was updated.
        """
        parameters = self.role.parameters()
        if self.role.shared and self._accelerator.num_processes > 1:
            for parameter in parameters:
                parameter.grad = self._accelerator.reduce(parameter.grad, "mean")
        norm = self._accelerator.clip_grad_norm_(parameters, self._train.clip_norm)
        # The norm is of gradients averaged over all processes, so all of them come to the same verdict here.
        if not torch.isfinite(norm):
            raise _not_finite(step, self._name, suspects)
        for group in self.optimizer.param_groups:
            group["lr"] = self._peak * _factor(step, self._train)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norm


class EngineLearner:
    """Likewise, as a DeepSpeed engine that spreads what it keeps over processes; clips and joins gradients itself.

    Args:
        how: ``zero2`` or ``zero3``.
        read: values of the network's parameters that are on the meta device.
    """

    def __init__(
        self, role: Role, name: str, learning_rate: float, train: TrainConfig, accelerator: Accelerator, how: str,
        read: TensorReader | None,
    ):  # fmt: skip
        self.role, self._name, self._peak, self._train = role, name, learning_rate, train
        adam = partial(torch.optim.Adam, lr=learning_rate, betas=train.betas, fused=True)
        self._engine, optimizer = engine_for(role, adam, train, accelerator, how, read)
        self.optimizer = Moments(optimizer, role.shares)

    def backward(self, loss: Tensor) -> None:
        """Adds the gradients of `loss` to the role's."""
        self._engine.backward(loss, scale_wrt_gas=False)
        if not self._engine.is_gradient_accumulation_boundary():
            self._engine.step()  # counts the micro-batch, no more

    def update(self, step: int, suspects: dict[str, Any]) -> Tensor:
        """See `Learner.update`. Call it after as many backward passes as the recipe accumulates."""
        for group in self.optimizer.optimizer.param_groups:
            group["lr"] = self._peak * _factor(step, self._train)
        self._engine.step()
        if not self._engine.was_step_applied():
            raise _not_finite(step, self._name, suspects)
        return torch.as_tensor(self._engine.get_global_grad_norm()).float()


def _factor(step: int, train: TrainConfig) -> float:
    warm_up = min(1.0, (step + 1) / (train.warmup_steps + 1))
    decay = 1 - 0.9 * step / train.max_steps if train.decay == "linear" else 1.0
    return warm_up * decay


def _not_finite(step: int, name: str, suspects: dict[str, Any]) -> RunError:
    return RunError(f"step {step + 1}, {name} update: the gradient is not finite; {_culprits(suspects)}")


def _culprits(suspects: dict[str, Any]) -> str:
    """Which tensors hold non-finite values, in which samples of this process."""
    found = []
    for name, value in suspects.items():
        if isinstance(value, Tensor):
            rows = (~torch.isfinite(value.detach())).flatten(1 if value.dim() > 1 else 0)
            bad = rows.any(1) if rows.dim() > 1 else rows
            if bad.any():
                found.append(f"{name} in samples {bad.nonzero().flatten().tolist()[:8]}")
    return "; ".join(found) or "no tensor of this process is; look at the others, or lower the learning rate"
