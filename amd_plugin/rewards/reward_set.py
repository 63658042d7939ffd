"""A recipe's rewards, computed together for one batch. What to do about those that fail is up to the host."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from amd_plugin.config import DataConfig, RewardConfig
from amd_plugin.errors import InputError, in_words
from amd_plugin.maths.advantage import aggregate
from amd_plugin.options import accepted
from amd_plugin.plugins import PluginManager
from amd_plugin.process_settings import as_they_were
from amd_plugin.rewards.pool import Pool, PoolError, WorkerCall, WorkerSpec, importable
from amd_plugin.rewards.scorer import Scorer

Result = Tensor | str  # scores, or the reason why there are none


class Scores(NamedTuple):
    """The rewards' scores of a batch.

    Attributes:
        total: weighted sum of the rewards [B], fp32; NaN where any reward of a weight other than 0 failed.
        each: scores of every reward [B], by its name in the recipe; all NaN where the call failed.
        causes: reasons why calls failed, by the reward's name.
    """

    total: Tensor
    each: dict[str, Tensor]
    causes: dict[str, str]


class PendingScores(NamedTuple):
    """A submitted batch.

    Attributes:
        results: scores or reason of each reward that ran in this process; the call of each that runs in a worker.
        size: number of samples B.
        device: device of the media.
    """

    results: dict[str, Result | WorkerCall]
    size: int
    device: torch.device


class RewardSet:
    """All rewards of a recipe.

    Args:
        configs: entries of the rewards in the recipe; a repeated name gets its position in the list as a suffix.
        plugins: plugins that provide the rewards.
        task: running task, for factories that take it.
        data: section of the recipe that `task` was made from, for rewards with a pool.
        device: device of the student; the CPU by default.

    Attributes:
        configs: entries of the rewards by their names here.
        pools: workers of the rewards that run in processes of their own, by name.
        scorers: rewards that run in this process, by name.
        overlaps: whether a reward runs beside this process.

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
        self.pools: dict[str, Pool] = {}
        self.scorers: dict[str, Scorer] = {}
        self._timed: dict[str, _TimedCall] = {}
        for config in configs:
            name = config.name if config.name not in self.configs else f"{config.name}_{len(self.configs)}"
            factory = plugins.reward_factory(config.name)
            own = config.host_keys & (accepted(factory) or set())
            self.configs[name] = config.model_copy(update={"timeout": None}) if "timeout" in own else config
            if config.pool and "pool" not in own:
                threads, seed = torch.get_num_threads(), getattr(task, "seed", 0)
                spec = WorkerSpec(config, importable(factory), data, str(device), threads, seed)
                self.pools[name] = Pool(spec, config.pool)
            else:
                self.scorers[name] = Scorer(config, factory, task, device, plugins)
                self._timed[name] = _TimedCall(self.scorers[name].device)
        self.overlaps = bool(self.pools)

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each reward, by name."""
        return {name: config.weight for name, config in self.configs.items()}

    @property
    def unit(self) -> float:
        """Significant difference of their weighted sum (`Traits.unit`); 0 if it is unknown for one of them."""
        sources: dict[str, Pool | Scorer] = {**self.pools, **self.scorers}
        units = [abs(config.weight) * sources[name].unit for name, config in self.configs.items() if config.weight]
        return sum(units) if all(units) else 0.0

    def __len__(self) -> int:
        """Number of rewards."""
        return len(self.configs)

    def __call__(self, media: Tensor, prompts: Sequence[str], **columns: Any) -> Scores:
        """Scores of `media` [B, ...] made for `prompts`; a reward gets the `columns` that its signature names."""
        return self.collect(self.submit(media, prompts, columns))

    def submit(self, media: Tensor, prompts: Sequence[str], columns: dict[str, Any]) -> PendingScores:
        """Submits `media` to the rewards that have workers, then computes the others in this process."""
        results: dict[str, Result | WorkerCall] = {}
        for name, pool in self.pools.items():
            results[name] = pool.submit(media, prompts, columns)
        for name, scorer in self.scorers.items():
            with as_they_were(f"reward '{name}'"):  # in a call with a time limit, which has a thread of its own
                results[name] = self._timed[name].run(partial(scorer, media, prompts, columns), self.configs[name].timeout)
        return PendingScores(results, len(media), media.device)

    def collect(self, pending: PendingScores) -> Scores:
        """The scores of a submitted batch, once all of them are there."""
        each: dict[str, Tensor] = {}
        causes: dict[str, str] = {}
        for name, config in self.configs.items():
            result = pending.results[name]
            if isinstance(result, WorkerCall):
                try:
                    result = self.pools[name].result(result, config.timeout)
                except PoolError as error:
                    result = str(error)
            if isinstance(result, str):
                causes[name] = result
                each[name] = torch.full((pending.size,), torch.nan, device=pending.device)
            else:
                each[name] = result.to(pending.device)
        weights = torch.tensor([*self.weights.values()])  # on the CPU, as a mask of columns
        columns = torch.stack([*each.values()], 1) if each else torch.zeros(pending.size, 0, device=pending.device)
        total, _ = aggregate(columns, torch.zeros(pending.size, device=pending.device), weights)
        return Scores(total, each, causes)

    def with_gradient(self, media: Tensor, prompts: Sequence[str], columns: dict[str, Any]) -> Tensor:
        """Weighted sum of the rewards [B] of `media` [B, ...], with its graph; NaN where one of them failed."""
        total = torch.zeros(len(media), device=media.device)
        for name, scorer in self.scorers.items():
            if self.weights[name]:
                result = _attempt(partial(scorer.with_gradient, media, prompts, columns))
                total = total + (self.weights[name] * result if isinstance(result, Tensor) else torch.nan)
        return total

    def without_gradient(self) -> str:
        """The first reward of a weight other than 0 that is not differentiable here, with the reason; empty if all are."""
        for name, weight in self.weights.items():
            in_pool = "runs in processes of its own; set its pool to 0"
            reason = in_pool if name in self.pools else self.scorers[name].no_gradient
            if weight and reason:
                return f"'{name}' {reason}"
        return ""

    def check_gradients(self, key: str) -> None:
        """Raises InputError, which names the option `key`, unless all rewards that count are differentiable here."""
        if reason := self.without_gradient():
            raise InputError(f"{key}: needs rewards with gradients, and {reason}")

    def close(self) -> None:
        """Ends the worker processes."""
        for pool in self.pools.values():
            pool.close()


class _TimedCall:
    """Calls in this process with a time limit. A thread cannot be stopped, so a late one is waited for before the next call.

    Args:
        device: the device of what is called. A new thread would have the first GPU for its own.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._late: threading.Thread | None = None

    def run(self, call: Callable[[], Tensor], limit: float | None) -> Result:
        """The result of `call`, or the reason why there is none after `limit` seconds."""
        if limit is None:
            return _attempt(call)
        if self._late is not None:
            self._late.join(limit)
            if self._late.is_alive():
                return f"TimeoutError: still busy with an earlier call after another {limit:g} s"
        results: list[Result] = []

        def work() -> None:
            if self._device.type == "cuda":
                torch.cuda.set_device(self._device)
            results.append(_attempt(call))

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        thread.join(limit)
        self._late = thread if thread.is_alive() else None
        return results[0] if self._late is None else f"TimeoutError: no answer within {limit:g} s"


def _attempt(call: Callable[[], Tensor]) -> Result:
    try:
        return call()
    except KeyboardInterrupt as error:
        if threading.current_thread() is threading.main_thread():
            raise  # Ctrl-C, which no other thread gets
        return in_words(error)
    except BaseException as error:  # of somebody else's code: SystemExit, GeneratorExit, CancelledError, ...
        return in_words(error)
