"""The student samples that turns start from, with their advantages: rolled out anew for each turn, or harvested once per cycle.

    fresh:    each turn rolls out B samples from noise to one exit rung, drawn for the turn
    harvest:  a cycle rolls out K B samples from noise through all N rungs, which gives P = K N samples per row
              of a turn's batch; turns of the cycle share them out, and each turn has samples of all rungs

The student changes in a cycle's last update only, so in both cases every turn gets samples of the student as it is.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from amd_plugin.hookspecs import Objective
from amd_plugin.host.training.batch import Batch, BatchSource, micro_batches, process_rows
from amd_plugin.host.training.forward import Exit, Forward
from amd_plugin.host.training.real_samples import RealSamples
from amd_plugin.host.training.scoring import Scoring, ScoringJob
from amd_plugin.randomness import generator


class Samples(NamedTuple):
    """The samples of a turn before their rewards are known.

    Attributes:
        batch: the joined batch.
        exits: this process's samples with the inputs that gave them, one per micro-batch.
        job: the rewards' job about these samples; None for an objective without rewards.
    """

    batch: Batch
    exits: list[Exit]
    job: ScoringJob | None


class ScoredSamples(NamedTuple):
    """The samples of a turn.

    Attributes:
        batch: the joined batch.
        exits: this process's samples with the inputs that gave them, one per micro-batch.
        advantage: the advantages [B] of the joined batch; None for an objective without rewards.
        again: whether an earlier turn of the cycle had the same samples.
    """

    batch: Batch
    exits: list[Exit]
    advantage: Tensor | None
    again: bool = False


class Harvest:
    """The samples of one cycle's rollouts, shared out to its turns.

    Each group has P samples per row, one for each set of rollouts and rung. The student's turn gets one of them, drawn
    evenly over the batch; the fake score's turns get the others in turn, so that it was not trained on the samples that it is
    asked about. With P = 1 all turns have the same samples.

    Args:
        forward: the rollouts.
        sets: the batches [K] of the cycle's rollouts.
        parts: this process's rows, by micro-batch.
        seed, step: the key of the random numbers that share samples out.
    """

    def __init__(self, forward: Forward, sets: list[Batch], parts: list[slice], seed: int, step: int):
        self._sets, self._parts, self._rungs = sets, parts, len(forward.ladder)
        self.choices = len(sets) * self._rungs
        groups, draws = len(sets[0].labels) // sets[0].group_size, generator(seed, step, "harvest")
        shift = torch.randint(self.choices, (), generator=draws)
        self._students = sets[0].by_group((torch.randperm(groups, generator=draws) + shift) % self.choices)
        self._x: list[Tensor] = []
        self._x0: list[list[Tensor]] = []
        for rows in parts:
            exits = [exit for batch in sets for exit in forward.descent(batch, rows)]
            # Only the student's turn needs inputs, and they weigh as much as the samples.
            self._x.append(_take([exit.x for exit in exits], self._students[rows]))
            self._x0.append([exit.x0 for exit in exits])

    def view(self, turn: str, update: int) -> int:
        """The index of a turn's samples: 0 for the student's, others for the fake score's. Equal ones are equal samples."""
        return 0 if turn == "student" or self.choices == 1 else 1 + update % (self.choices - 1)

    def samples(self, turn: str, update: int) -> tuple[Batch, list[Exit]]:
        """The batch of a turn, and this process's samples by micro-batch. The inputs are those of the student's turn."""
        chosen = (self._students + self.view(turn, update)) % self.choices
        labels = _take([batch.labels for batch in self._sets], chosen // self._rungs)
        batch = self._sets[0].again(turn, update, labels, chosen % self._rungs)
        parts = zip(self._parts, self._x, self._x0, strict=True)
        return batch, [Exit(x, _take(x0, chosen[rows])) for rows, x, x0 in parts]


def _take(choices: list[Tensor], chosen: Tensor) -> Tensor:
    """Each row [b, ...] from that one of the `choices` that `chosen` [b], on the CPU, names."""
    taken = choices[0].clone()
    for index, choice in enumerate(choices[1:], 1):
        rows = (chosen == index).nonzero().flatten().to(choice.device)
        taken[rows] = choice[rows]
    return taken


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
        source: the run's batches.
        rows: this process's rows of the joined batch.
        micro_batches: the same rows, by micro-batch.
    """

    def __init__(
        self, source: BatchSource, forward: Forward, objective: Objective, scoring: Scoring | None, real: RealSamples | None,
        accelerator: Accelerator,
    ):  # fmt: skip
        self._train = train = source.train
        self.source, self._forward, self._objective, self._scoring, self._real = source, forward, objective, scoring, real
        self.rows = process_rows(train.batch_size, accelerator.process_index, accelerator.num_processes)
        self.micro_batches = micro_batches(self.rows, train.accumulation)
        self._ahead: dict[tuple[str, int], Samples] = {}
        self._harvest: Harvest | None = None
        self._scored: dict[int, ScoredSamples] = {}  # by view of the harvest

    def batch(self, step: int, turn: str, update: int) -> Batch:
        """The joined batch of one update with rollouts of its own."""
        batch = Batch(self.source, step, turn, update)
        if self._real is not None:
            groups = self._train.batch_size // self._train.group_size
            batch.start_from(*self._real.draw(groups, batch.generator("real start"), batch.position))
        return batch

    def begin(self, step: int) -> None:
        """Starts a cycle: rolls out what its turns share, and gives all of it to rewards in processes of their own.

        Those rewards score during the updates. The student changes only in the cycle's last update, so its samples are the
        same now as later. A graph for the student's turn is not kept meanwhile: its last call is repeated.
        """
        self._ahead.clear()
        if self.source.harvests:
            sets = [self.batch(step, "rollouts", index) for index in range(self._train.rollout_sets)]
            self._harvest = Harvest(self._forward, sets, self.micro_batches, self._train.seed, step)
        if self._scoring is not None and self._scoring.rewards.overlaps:
            updates = range(self._train.fake_updates)
            turns = (*(("fake score", update) for update in updates), ("student", self._train.fake_updates))
            first = {turn if self._harvest is None else self._harvest.view(*turn): turn for turn in reversed(turns)}
            self._ahead = {turn: self.start(step, *turn, grad=False) for turn in turns if turn in first.values()}

    def start(self, step: int, turn: str, update: int, *, grad: bool) -> Samples:
        """The samples of a turn, and the job that the rewards were given."""
        if (turn, update) in self._ahead:
            return self._ahead.pop((turn, update))
        if self._harvest is not None:
            batch, exits = self._harvest.samples(turn, update)
        else:
            batch = self.batch(step, turn, update)
            exits = [self._forward.rollout(batch, rows, grad=grad) for rows in self.micro_batches]
        job = None if self._scoring is None else self._scoring.submit(batch, self.rows, [exit.x0 for exit in exits])
        return Samples(batch, exits, job)

    def advantage(self, batch: Batch, job: ScoringJob | None) -> Tensor | None:
        """Advantages [B] of the joined batch; None for an objective without rewards.

        Rewards are on the CPU, so that statistics, budgets and messages read them without asking the device.

        Raises:
            RunError: on every process, for a failed reward that ends the run.
        """
        if self._scoring is None or job is None:
            return None
        reward, groups = self._scoring.collect(job)
        advantage = torch.empty_like(reward)
        for rung in sorted(set(batch.rungs.tolist())):
            of_rung = batch.rungs == rung
            advantage[of_rung] = self._objective.advantage(reward[of_rung], groups[of_rung], rung).to(advantage)
        return advantage.to(batch.device, non_blocking=True)

    def for_fake_score(self, step: int, update: int, warm_up: int | None = None) -> ScoredSamples:
        """The samples of one fake-score update; of the update `warm_up` before the first cycle, where that is given."""
        if warm_up is None:
            return self._scored_once(step, "fake score", update, grad=False)
        # The prompts of later cycles, with random numbers of its own.
        batch, exits, job = self.start(warm_up % self._train.max_steps, f"warm-up {warm_up}", update, grad=False)
        return ScoredSamples(batch, exits, self.advantage(batch, job))

    def for_student(self, step: int) -> ScoredSamples:
        """The samples of the student's update; with a graph where the update has one micro-batch, and they were not shared."""
        # The graphs of several micro-batches would not fit in memory.
        scored = self._scored_once(step, "student", self._train.fake_updates, grad=len(self.micro_batches) == 1)
        self._harvest = None  # frees the other turns' samples before the graph is made
        self._scored.clear()
        return scored

    def _scored_once(self, step: int, turn: str, update: int, *, grad: bool) -> ScoredSamples:
        """The samples of a turn, which are scored by the first turn that has them."""
        view = None if self._harvest is None else self._harvest.view(turn, update)
        if view is not None and (scored := self._scored.get(view)) is not None:
            return scored._replace(batch=scored.batch.again(turn, update), again=True)
        batch, exits, job = self.start(step, turn, update, grad=grad)
        scored = ScoredSamples(batch, exits, self.advantage(batch, job))
        if view is not None:
            self._scored[view] = scored
        return scored
