"""The consequences of a failed reward: a warning the first time, and the end of the run where the recipe asks for it.

Every decision is taken on numbers that all processes share, so that either all of them stop or none does. An exception on one
process alone would leave the others waiting.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping, Sequence

from accelerate import Accelerator
from accelerate.utils import gather_object

from amd_plugin.config import RewardConfig, TrainConfig
from amd_plugin.errors import RunError

log = logging.getLogger(__name__)

NOT_FINITE = "NaN, None or beyond 1e15"


class FailurePolicy:
    """Counts the samples that each reward failed on, and stops the run when they are too many.

    A reward ends the run if it fails while its `on_error` is ``raise``, or if it fails on more than `train.max_failed_rewards`
    of the samples of the last `train.failed_rewards_window` batches.

    Args:
        rewards: the rewards' configs by name.
        train: the recipe's train section.
        accelerator: the run's processes.
    """

    def __init__(self, rewards: Mapping[str, RewardConfig], train: TrainConfig, accelerator: Accelerator):
        self._rewards, self._most, self._accelerator = rewards, train.max_failed_rewards, accelerator
        self._window: dict[str, deque[float]] = {name: deque(maxlen=train.failed_rewards_window) for name in rewards}
        self._causes: dict[str, str] = {}
        self._warned: set[tuple[str, str]] = set()

    def judge(self, failed: Sequence[float], broke: Sequence[bool], causes: Mapping[str, str]) -> None:
        """Warns about a batch's failures and counts them. Call on every process.

        Args:
            failed: the share of the joined batch's samples that each reward failed on.
            broke: whether the call itself failed on some process, for each reward.
            causes: this process's exceptions by reward.

        Raises:
            RunError: on every process, for a reward that ends the run.
        """
        for name, share, flag in zip(self._rewards, failed, broke, strict=True):
            cause = causes.get(name, "")
            if not cause and share and not flag and self._accelerator.is_main_process:
                cause = NOT_FINITE
            ends_the_run = flag and self._rewards[name].on_error == "raise"  # the error has the cause, and no sample counts
            if cause and not ends_the_run:
                affected = f"on {share:.0%} of a batch's samples, which get advantage 0; counted as reward_failed/{name}"
                self.warn(name, cause, affected)
        self._causes.update(causes)
        fatal = [self._fatal(name, share, flag) for name, share, flag in zip(self._rewards, failed, broke, strict=True)]
        if any(fatal):
            raise RunError(next(filter(None, fatal)))

    def warn(self, name: str, cause: str, affected: str) -> None:
        """Logs a failure of the reward `name`, once for each kind of `cause`."""
        kind = (name, cause.partition(":")[0])
        if kind not in self._warned:
            self._warned.add(kind)
            log.warning("reward '%s': %s: %s; logged once", name, cause, affected)

    def state_dict(self) -> dict[str, list[float]]:
        """JSON-able: the shares of failed samples in the last batches, by reward."""
        return {name: list(shares) for name, shares in self._window.items()}

    def load_state_dict(self, state: Mapping[str, Sequence[float]]) -> None:
        """Restores the result of `state_dict`."""
        for name, shares in self._window.items():
            shares.clear()
            shares.extend(state.get(name, ()))

    def _fatal(self, name: str, failed: float, broke: bool) -> str:
        """The error that ends the run after this batch; empty if the run goes on."""
        window = self._window[name]
        window.append(failed)
        share = sum(window) / len(window)
        if broke and self._rewards[name].on_error == "raise":
            advice = "Mend it, or set on_error: neutral on that reward to give such batches advantage 0"
            return f"reward '{name}' failed: {self._all_causes(name)}\n{advice}"
        if len(window) == window.maxlen and share > self._most:
            advice = "Mend the reward, or raise train.max_failed_rewards"
            counted = f"reward '{name}' failed on {share:.0%} of the samples of the last {len(window)} batches"
            return f"{counted}, more than train.max_failed_rewards {self._most:g}: {self._all_causes(name)}\n{advice}"
        return ""

    def _all_causes(self, name: str) -> str:
        """The last cause of failure on each process. Call on every process."""
        process = f"process {self._accelerator.process_index}: " if self._accelerator.num_processes > 1 else ""
        cause = self._causes.get(name, "")
        causes = gather_object([f"{process}{cause}" if cause else ""])
        return "; ".join(cause for cause in causes if cause) or NOT_FINITE
