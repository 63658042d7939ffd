"""A recipe's rewards, asked together about one batch. What to do about those that fail is the host's business."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from amd_plugin.config import DataConfig, RewardConfig
from amd_plugin.errors import InputError
from amd_plugin.maths.advantage import aggregate
from amd_plugin.options import accepted
from amd_plugin.plugins import PluginManager
from amd_plugin.rewards.pool import Call, Pool, PoolError, Spec, by_name
from amd_plugin.rewards.scorer import Scorer

Answer = Tensor | str


class Scores(NamedTuple):
    """What the rewards said about a batch.

    Attributes:
        total: weighted sum [B], fp32; NaN where any reward that counts could not be computed.
        each: every reward's own values [B], by its name in the recipe; all NaN where the call failed.
        failure: why the first of those with ``on_error: raise`` failed; empty otherwise.
        causes: why calls failed, by the reward's name.
    """

    total: Tensor
    each: dict[str, Tensor]
    failure: str
    causes: dict[str, str]


class Pending(NamedTuple):
    """A batch handed to the rewards: answers that are there, and calls that workers have."""

    answers: dict[str, Answer | Call]
    size: int
    device: torch.device


class RewardSet:
    """Asks every reward of a recipe.

    Args:
        configs: the recipe's rewards; those of one name get the number of their place as a suffix.
        plugins: where they are looked up.
        task: handed to the factories that ask for it.
        data: what `task` was made from, for rewards with a pool.
        device: where the student is.

    Attributes:
        configs: the recipe's rewards by their names here.
        overlaps: whether one of them runs beside this process.

    Raises:
        InputError: for a reward that is unknown or cannot be built.
    """

    def __init__(
        self,
        configs: Sequence[RewardConfig],
        plugins: PluginManager,
        task: Any,
        data: DataConfig | None = None,
        device: torch.device | None = None,
    ):
        device = device or torch.device("cpu")
        self.configs: dict[str, RewardConfig] = {}
        self._askers: dict[str, Pool | Scorer] = {}
        self._patience: dict[str, _Patience] = {}
        for config in configs:
            name = config.name if config.name not in self.configs else f"{config.name}_{len(self.configs)}"
            factory = plugins.reward_factory(config.name)
            own = config.host_keys & (accepted(factory) or set())
            self.configs[name] = config.model_copy(update={"timeout": None}) if "timeout" in own else config
            if config.pool and "pool" not in own:
                spec = Spec(config, by_name(factory), data, str(device), torch.get_num_threads())
                self._askers[name] = Pool(spec, config.pool)
            else:
                self._askers[name] = Scorer(config, factory, task, device)
            self._patience[name] = _Patience()
        self.overlaps = any(isinstance(asker, Pool) for asker in self._askers.values())

    @property
    def weights(self) -> dict[str, float]:
        """By name."""
        return {name: config.weight for name, config in self.configs.items()}

    @property
    def unit(self) -> float:
        """A clear difference of their weighted sum (`Traits.unit`); 0 if one of them has none."""
        units = [abs(config.weight) * self._askers[name].unit for name, config in self.configs.items() if config.weight]
        return sum(units) if all(units) else 0.0

    def __len__(self) -> int:
        """How many there are."""
        return len(self.configs)

    def __call__(self, media: Tensor, prompts: Sequence[str], **columns: Any) -> Scores:
        """Scores `media` [B, ...] made for `prompts`; `columns` go to the rewards that name them."""
        return self.collect(self.submit(media, prompts, columns))

    def submit(self, media: Tensor, prompts: Sequence[str], columns: dict[str, Any]) -> Pending:
        """Hands `media` to the workers of rewards that have some, then asks the others here."""
        answers: dict[str, Answer | Call] = {}
        for name, asker in self._askers.items():
            if isinstance(asker, Pool):
                answers[name] = asker.submit(media, prompts, columns)
        for name, asker in self._askers.items():
            if isinstance(asker, Scorer):
                call = lambda asker=asker: asker(media, prompts, columns)  # noqa: E731
                answers[name] = self._patience[name].answer(call, self.configs[name].timeout)
        return Pending(answers, len(media), media.device)

    def collect(self, pending: Pending) -> Scores:
        """What the rewards said, when all have."""
        each: dict[str, Tensor] = {}
        causes: dict[str, str] = {}
        for name, config in self.configs.items():
            answer, asker = pending.answers[name], self._askers[name]
            if isinstance(answer, Call) and isinstance(asker, Pool):
                try:
                    answer = asker.result(answer, config.timeout)
                except PoolError as error:
                    answer = str(error)
            if isinstance(answer, str):
                causes[name] = answer
            failed = torch.full((pending.size,), torch.nan, device=pending.device)
            each[name] = answer.to(pending.device) if isinstance(answer, Tensor) else failed
        weights = torch.tensor([*self.weights.values()], device=pending.device)
        columns = torch.stack([*each.values()], 1) if each else torch.zeros(pending.size, 0, device=pending.device)
        total, _ = aggregate(columns, torch.zeros(pending.size, device=pending.device), weights)
        fatal = [f"reward '{name}': {cause}" for name, cause in causes.items() if self.configs[name].on_error == "raise"]
        return Scores(total, each, fatal[0] if fatal else "", causes)

    def with_gradient(self, media: Tensor, prompts: Sequence[str], columns: dict[str, Any]) -> Tensor:
        """Weighted sum of the rewards [B] of `media` [B, ...], with its graph; NaN where one of them failed."""
        total = torch.zeros(len(media), device=media.device)
        for name, asker in self._askers.items():
            if isinstance(asker, Scorer) and self.weights[name]:
                answer = _attempt(lambda asker=asker: asker.with_gradient(media, prompts, columns))  # type: ignore[misc]
                total = total + (self.weights[name] * answer if isinstance(answer, Tensor) else torch.nan)
        return total

    def check_gradients(self) -> None:
        """Raises InputError, saying why, where a reward that counts gives no gradients."""
        for name, asker in self._askers.items():
            if not self.weights[name]:
                continue
            why = "runs in processes of its own; set its pool to 0" if isinstance(asker, Pool) else asker.no_gradient
            if why:
                raise InputError(f"objective.reward_gradient: needs rewards with gradients, and '{name}' {why}")

    def close(self) -> None:
        """Ends the worker processes."""
        for asker in self._askers.values():
            if isinstance(asker, Pool):
                asker.close()


class _Patience:
    """Waits for a call in this process, within limits. A thread cannot be stopped: one that is late is waited for next time."""

    def __init__(self) -> None:
        self._late: threading.Thread | None = None

    def answer(self, call: Callable[[], Tensor], limit: float | None) -> Answer:
        """What `call` returned, or why it did not."""
        if limit is None:
            return _attempt(call)
        if self._late is not None:
            self._late.join(limit)
            if self._late.is_alive():
                return f"TimeoutError: still busy with an earlier call after another {limit:g} s"
        found: list[Answer] = []
        thread = threading.Thread(target=lambda: found.append(_attempt(call)), daemon=True)
        thread.start()
        thread.join(limit)
        self._late = thread if thread.is_alive() else None
        return found[0] if self._late is None else f"TimeoutError: no answer within {limit:g} s"


def _attempt(call: Callable[[], Tensor]) -> Answer:
    try:
        return call()
    except (Exception, SystemExit) as error:
        return f"{type(error).__name__}: {error}"
