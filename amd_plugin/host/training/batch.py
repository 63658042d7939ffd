"""The inputs of one update: conditions, exit rung and every random number, for the joined batch of all processes."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from amd_plugin.config import TrainConfig
from amd_plugin.randomness import generator
from amd_plugin.tasks import Task


@dataclass(frozen=True)
class BatchSource:
    """The properties that all batches of a run share.

    Attributes:
        train: batch size, group size, updates per cycle and seed.
        task: the task that draws labels.
        sample_shape: the shape of one sample.
        num_rungs: the number of denoising steps of the student.
        device: the device of all random numbers.
    """

    train: TrainConfig
    task: Task
    sample_shape: tuple[int, ...]
    num_rungs: int
    device: torch.device

    @property
    def harvests(self) -> bool:
        """Whether all updates of a cycle share the samples of its rollouts."""
        return self.train.harvests(self.num_rungs)

    def batches_before(self, step: int) -> int:
        """The number of batches drawn in the first `step` cycles."""
        return step * (self.train.rollout_sets if self.harvests else self.train.fake_updates + 1)

    def updates_before(self, step: int) -> int:
        """The number of updates in the first `step` cycles."""
        return step * (self.train.fake_updates + 1)


class Batch:
    """The joined batch of one update: B samples over all processes and micro-batches.

    Every process holds the whole batch and takes its own rows. The random numbers do not depend on how rows are distributed.

    Args:
        source: the run's batches.
        step: student updates so far.
        turn: the turn's name, for example ``student``.
        update: the index of the update, or of the set of rollouts, in its cycle; the student's update comes last.

    Attributes:
        step: student updates so far.
        position: the number of batches before this one.
        updates_before: the number of updates before this one.
        device: the device of random numbers and real samples.
        group_size: the number of neighbouring samples with one label and one rung.
        labels: the labels [B], on the CPU; each group has one label.
        rungs: the indices [B] of the rungs whose predictions are taken, on the CPU; each group has one rung.
        real: the real samples [B, ...] that rollouts start from; empty where they start from noise.
    """

    def __init__(self, source: BatchSource, step: int, turn: str, update: int):
        train = source.train
        self.step, self.position = step, source.batches_before(step) + update
        self._start, self.updates_before = source.updates_before(step), source.updates_before(step) + update
        self._seed, self.device = train.seed, source.device
        # A cycle has one update of the student, and may have more sets of rollouts than updates of the fake score.
        self._key: tuple[object, ...] = (step, turn, 0 if turn == "student" else update)
        self._shape, self.group_size = (train.batch_size, *source.sample_shape), train.group_size
        groups = train.batch_size // train.group_size
        # Labels select prompts, and rungs calls of the host, so a device is never asked for them.
        labels = source.task.draw_labels(self.position, groups, generator(self._seed, *self._key, "labels")).cpu()
        self.labels, self.real = self.by_group(labels), torch.empty(0)
        rung = torch.randint(source.num_rungs, (), generator=generator(self._seed, *self._key, "exit rung"))
        self.rungs = rung.expand(train.batch_size)

    @property
    def exit_rung(self) -> int:
        """The rung of all samples, of a batch with one."""
        return int(self.rungs[0])

    def rungs_of(self, rows: slice) -> int | Tensor:
        """The rungs [b] of `rows`, on the device; a number where the batch has only one."""
        rungs = self.rungs[rows]
        return int(rungs[0]) if bool((self.rungs == self.rungs[0]).all()) else rungs.to(self.device)

    @classmethod
    def restored(cls, source: BatchSource, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Batch:
        """The batch that gave `state` and `tensors`."""
        batch = cls.__new__(cls)
        batch.step, batch.position, batch.updates_before = state["step"], state["position"], state["updates_before"]
        batch._start, batch._key, batch.group_size = state["start"], tuple(state["key"]), state["group_size"]
        batch._seed, batch.device = source.train.seed, source.device
        batch._shape = (len(tensors["labels"]), *source.sample_shape)
        batch.labels, batch.real = tensors["labels"].cpu(), tensors["real"].to(source.device)
        batch.rungs = tensors["rungs"]
        return batch

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """(JSON-able, tensors): all that `restored` needs."""
        plain = {
            "step": self.step, "position": self.position, "updates_before": self.updates_before, "start": self._start,
            "key": list(self._key), "group_size": self.group_size,
        }  # fmt: skip
        return plain, {"labels": self.labels, "rungs": self.rungs.contiguous(), "real": self.real}

    def by_group(self, values: Tensor) -> Tensor:
        """`values` [groups, ...], once for each sample of its group: [B, ...]."""
        return values.repeat_interleave(self.group_size, 0)

    def again(self, turn: str, update: int, labels: Tensor | None = None, rungs: Tensor | None = None) -> Batch:
        """A batch of samples that exist, with the random numbers of another `update`.

        Args:
            turn: the turn's name.
            update: the update's index in its cycle.
            labels: the labels [B]; None for this batch's.
            rungs: the rungs [B]; None for this batch's.
        """
        other = copy.copy(self)
        other._key = (*self._key, "again", turn, update)
        other.updates_before = self._start + update
        other.labels = self.labels if labels is None else labels
        other.rungs = self.rungs if rungs is None else rungs
        return other

    def start_from(self, real: Tensor, labels: Tensor) -> None:
        """Starts each group from one real sample of `real` [groups, ...] and takes that sample's label of `labels` [groups]."""
        self.real, self.labels = self.by_group(real), self.by_group(labels.cpu())

    def generator(self, *purpose: object) -> torch.Generator:
        """A generator for `purpose`, the same on every process."""
        return generator(self._seed, *self._key, *purpose, device=self.device)

    def generators(self, purpose: str, rows: slice) -> list[torch.Generator]:
        """One generator for each of `rows`."""
        return [self.generator(purpose, row) for row in range(rows.start, rows.stop)]

    def normal(self, purpose: str) -> Tensor:
        """Standard normal noise [B, ...]."""
        return torch.randn(self._shape, generator=self.generator(purpose), device=self.device)

    def uniform(self, purpose: str, window: tuple[float | Tensor, float]) -> Tensor:
        """Uniform numbers [B] in `window`, whose lower end may be one of each sample, [B]."""
        low, high = window
        draws = torch.rand(self._shape[0], generator=self.generator(purpose), device=self.device)
        return low + (high - low) * draws


def process_rows(batch_size: int, index: int, processes: int) -> slice:
    """The rows of the joined batch that process `index` of `processes` works on."""
    share = batch_size // processes
    return slice(index * share, (index + 1) * share)


def micro_batches(rows: slice, accumulation: int) -> list[slice]:
    """`rows` in `accumulation` parts of equal size, in order."""
    size = (rows.stop - rows.start) // accumulation
    return [slice(start, start + size) for start in range(rows.start, rows.stop, size)]
