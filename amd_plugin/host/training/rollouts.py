"""The student samples that a turn starts from. Reward pools and the reuse of rollouts are handled in this file only."""

from __future__ import annotations

from typing import NamedTuple

from accelerate import Accelerator
from torch import Tensor

from amd_plugin.hookspecs import Objective
from amd_plugin.host.training.batch import Batch, BatchSource, micro_batches, process_rows
from amd_plugin.host.training.forward import Forward
from amd_plugin.host.training.real_samples import RealSamples
from amd_plugin.host.training.scoring import Scoring, ScoringJob


class TurnInputs(NamedTuple):
    """The start of a turn.

    Attributes:
        batch: the joined batch.
        samples: this process's student samples, one tensor per micro-batch.
        job: the rewards' job about these samples; None for an objective without rewards.
    """

    batch: Batch
    samples: list[Tensor]
    job: ScoringJob | None


class ScoredSamples(NamedTuple):
    """The samples that an update of the fake score learns from.

    Attributes:
        batch: the joined batch.
        samples: this process's student samples, one tensor per micro-batch.
        advantage: the advantages [B] of the joined batch; None for an objective without rewards.
    """

    batch: Batch
    samples: list[Tensor]
    advantage: Tensor | None


class Rollouts:
    """Student samples and their advantages, by turn.

    Args:
        source: the run's batches.
        forward: the rollout of one micro-batch.
        objective: the objective that turns rewards into advantages.
        scoring: the rewards; None for an objective without rewards.
        real: the real samples that rollouts start from; None where they start from noise.
        accelerator: the run's processes.

    Attributes:
        rows: this process's rows of the joined batch.
        micro_batches: the same rows, by micro-batch.
    """

    def __init__(
        self, source: BatchSource, forward: Forward, objective: Objective, scoring: Scoring | None, real: RealSamples | None,
        accelerator: Accelerator,
    ):  # fmt: skip
        train = source.train
        self._source, self._forward, self._objective, self._scoring, self._real = source, forward, objective, scoring, real
        self.rows = process_rows(train.batch_size, accelerator.process_index, accelerator.num_processes)
        self.micro_batches = micro_batches(self.rows, train.accumulation)
        self._reuses, self._fake_updates = train.reuse_rollouts, train.fake_updates
        self._ahead: dict[tuple[str, int], TurnInputs] = {}
        self._reused: ScoredSamples | None = None

    def batch(self, step: int, turn: str, update: int) -> Batch:
        """The joined batch of one update."""
        batch = Batch(self._source, step, turn, update)
        if self._real is not None:
            groups = self._source.train.batch_size // self._source.train.group_size
            batch.start_from(*self._real.draw(groups, batch.generator("real start"), batch.position))
        return batch

    def score_ahead(self, step: int) -> None:
        """Starts all turns of a cycle if rewards run in processes of their own, so that they score during the updates.

        The student changes only in the cycle's last update, so its samples are the same now as later. The student's turn
        repeats its rollout with a graph: to keep the graph during the fake score's updates would cost memory.
        """
        self._ahead.clear()
        if self._scoring is not None and self._scoring.rewards.overlaps:
            turns = [("fake score", update) for update in range(1 if self._reuses else self._fake_updates)]
            for turn in (*turns, ("student", self._fake_updates)):
                self._ahead[turn] = self.start(step, *turn, grad=False)

    def start(self, step: int, turn: str, update: int, *, grad: bool) -> TurnInputs:
        """The batch of a turn, its samples, and the job that the rewards were given."""
        if (turn, update) in self._ahead:
            return self._ahead.pop((turn, update))
        batch = self.batch(step, turn, update)
        samples = [self._forward.rollout(batch, rows, grad=grad) for rows in self.micro_batches]
        job = None if self._scoring is None else self._scoring.submit(batch, self.rows, samples)
        return TurnInputs(batch, samples, job)

    def advantage(self, batch: Batch, job: ScoringJob | None) -> Tensor | None:
        """Advantages [B] of the joined batch; None for an objective without rewards.

        Raises:
            RunError: on every process, for a failed reward that ends the run.
        """
        if self._scoring is None or job is None:
            return None
        reward, groups = self._scoring.collect(job)
        return self._objective.advantage(reward, groups, batch.exit_rung)

    def for_fake_score(self, step: int, update: int, warm_up: int | None = None) -> ScoredSamples:
        """The samples of one fake-score update; of the update `warm_up` before the first cycle, where that is given.

        With ``train.reuse_rollouts`` the cycle's first samples serve all its updates, with noise and levels of their own.
        """
        if update and self._reused is not None:
            batch, samples, advantage = self._reused
            return ScoredSamples(batch.again(update), samples, advantage)
        turn = "fake score"
        if warm_up is not None:  # the prompts of later cycles, with random numbers of its own
            step, turn = warm_up % self._source.train.max_steps, f"warm-up {warm_up}"
        batch, samples, job = self.start(step, turn, update, grad=False)
        scored = ScoredSamples(batch, samples, self.advantage(batch, job))
        self._reused = scored if self._reuses else None
        return scored

    def release(self) -> None:
        """Frees the samples that fake-score updates share."""
        self._reused = None
