"""The optimizer of a trained role: its learning rate, and an update that is left out where gradients are not finite."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any, Protocol, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor

from amd_plugin.config import TrainConfig
from amd_plugin.models.roles import Role
from amd_plugin.models.step_conditioning import RUNG_LR, in_outcomes, in_rungs
from amd_plugin.sharding.engine import EngineSettings, engine_for
from amd_plugin.sharding.shares import Moments

Part = TypeVar("Part")


class RoleOptimizer(Protocol):
    """The interface of `Learner` and `EngineLearner`.

    Attributes:
        role: the trained role.
        optimizer: the state for checkpoints, with `state_dict` and `load_state_dict`.
    """

    role: Role
    optimizer: Any

    def micro_batches(self, parts: Sequence[Part]) -> Iterator[Part]:
        """The `parts` of an update, for a loop whose body is the forward and the backward pass of one of them."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Accumulates the gradients of the scalar `loss` in the role's parameters."""
        ...

    def update(self, step: int) -> Tensor:
        """Applies the accumulated gradients and returns their norm before clipping, on the CPU, the same on every process.

        Call it after as many backward passes as the recipe accumulates. Where the norm is not finite, nothing is updated and
        the gradients are dropped.

        Args:
            step: student updates so far.
        """
        ...


class Learner:
    """Trains one role with Adam, on every process alike.

    Args:
        role: the role; its network is wrapped for several processes here, unless other roles share it.
        learning_rate: the peak learning rate.
        train: betas, clipping, warm-up and decay.
        accelerator: the processes over which gradients are averaged.
    """

    def __init__(self, role: Role, learning_rate: float, train: TrainConfig, accelerator: Accelerator):
        self.role, self._train, self._accelerator = role, train, accelerator
        groups, self._peaks = parameter_groups(role, learning_rate, train)
        optimizer = torch.optim.Adam(groups, lr=learning_rate, betas=train.betas, fused=True)
        if role.shared:
            self.optimizer: Any = accelerator.prepare(optimizer)
        else:
            role.wrapped, self.optimizer = accelerator.prepare(role.network, optimizer)

    def micro_batches(self, parts: Sequence[Part]) -> Iterator[Part]:
        """See `RoleOptimizer.micro_batches`: processes average gradients in the last backward pass, and not in each."""
        *before, last = parts
        for part in before:
            with nullcontext() if self.role.shared else self._accelerator.no_sync(self.role.wrapped):
                yield part
        yield last

    def backward(self, loss: Tensor) -> None:
        """See `RoleOptimizer.backward`."""
        # Recomputed activations and gradients of a shared base belong to the role that is active.
        self.role.activate()
        self._accelerator.backward(loss)

    def update(self, step: int) -> Tensor:
        """See `RoleOptimizer.update`."""
        parameters = self.role.parameters()
        if self.role.shared and self._accelerator.num_processes > 1:
            for parameter in parameters:
                parameter.grad = self._accelerator.reduce(parameter.grad, "mean")
        # The one copy to the host of an update.
        norm: Tensor = self._accelerator.clip_grad_norm_(parameters, self._train.clip_norm).cpu()
        # The norm is that of gradients averaged over all processes, so that all of them decide alike.
        if torch.isfinite(norm):
            _set_learning_rates(self.optimizer, self._peaks, step, self._train)
            self.optimizer.step()
        self.optimizer.zero_grad()
        return norm


class EngineLearner:
    """Trains one role as a DeepSpeed engine, which shards its state over processes, and clips and averages gradients itself.

    Args:
        role: the role, with a network of its own.
        learning_rate: the peak learning rate.
        settings: the settings of all engines.
    """

    def __init__(self, role: Role, learning_rate: float, settings: EngineSettings):
        self.role, self._train = role, settings.train
        groups, self._peaks = parameter_groups(role, learning_rate, settings.train)

        def adam() -> torch.optim.Adam:
            groups, _ = parameter_groups(role, learning_rate, settings.train)  # stage 3 has replaced the parameters by now
            return torch.optim.Adam(groups, lr=learning_rate, betas=settings.train.betas, fused=True)

        self._engine, optimizer, shares = engine_for(role, adam, settings)
        self.optimizer = Moments(optimizer, shares, [len(group["params"]) for group in groups])

    def micro_batches(self, parts: Sequence[Part]) -> Iterator[Part]:
        """See `RoleOptimizer.micro_batches`; the engine counts them itself."""
        return iter(parts)

    def backward(self, loss: Tensor) -> None:
        """See `RoleOptimizer.backward`."""
        self._engine.backward(loss, scale_wrt_gas=False)
        if not self._engine.is_gradient_accumulation_boundary():
            self._engine.step()  # only counts the micro-batch

    def update(self, step: int) -> Tensor:
        """See `RoleOptimizer.update`."""
        _set_learning_rates(self.optimizer.optimizer, self._peaks, step, self._train)
        self._engine.step()
        if not self._engine.was_step_applied():
            return torch.tensor(torch.nan)
        return torch.as_tensor(self._engine.get_global_grad_norm()).float().cpu()


def parameter_groups(role: Role, learning_rate: float, train: TrainConfig) -> tuple[list[dict[str, Any]], list[float]]:
    """The optimizer's parameter groups for `role`, and the peak rate of each: its weights, then tables with rates of their own.

    What tables have learned grows from zero, so their rates must not depend on how large the network is. A table of rungs that
    learns as fast as the weights is one of them.
    """
    named = role.named_parameters()
    apart = [(in_outcomes, train.outcome_lr)]
    if learning_rate < RUNG_LR:
        apart.insert(0, (in_rungs, RUNG_LR))
    tables = [([value for name, value in named.items() if of_part(name)], rate) for of_part, rate in apart]
    known = {id(value) for values, _ in tables for value in values}
    weights = [value for value in named.values() if id(value) not in known]
    groups = [(weights, learning_rate), *((values, rate) for values, rate in tables if values)]
    return [{"params": values} for values, _ in groups], [rate for _, rate in groups]


def _set_learning_rates(optimizer: torch.optim.Optimizer, peaks: Sequence[float], step: int, train: TrainConfig) -> None:
    for group, peak in zip(optimizer.param_groups, peaks, strict=True):
        group["lr"] = peak * _learning_rate_factor(step, train)


def learning_rates(step: int, train: TrainConfig, trained: Iterable[str]) -> dict[str, float]:
    """The learning rate of each of the roles `trained` in the update after `step` student updates, as metrics."""
    peaks = {"student": train.student_lr, "fake_score": train.fake_lr, "discriminator": train.discriminator_lr or train.fake_lr}
    return {f"learning_rate/{role}": peaks[role] * _learning_rate_factor(step, train) for role in trained}


def _learning_rate_factor(step: int, train: TrainConfig) -> float:
    warm_up = min(1.0, (step + 1) / (train.warmup_steps + 1))
    decay = 1 - 0.9 * step / train.max_steps if train.decay == "linear" else 1.0
    return warm_up * decay
