"""Bytes on one GPU, by role and by purpose: pure arithmetic on sizes and traces.

    student, fake score   none:  fp32 weights and gradients, two Adam moments; with several processes the reducer's buckets
                          zero2: whole weights in the computing precision; sharded gradients, fp32 masters and moments
                          zero3: sharded weights too; a few layers are gathered at a time
    teacher               none: whole; zero3: sharded; zero3_offload: in host memory. A few layers are gathered in both

A role's gradients live from its first backward pass to its update. Student and fake score therefore never hold gradients at the
same time, unless DeepSpeed's engines keep the memory.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import prod

from amd_plugin.config import RecipeConfig
from amd_plugin.hookspecs import Needs
from amd_plugin.objectives.failure_memory import BYTES, SIZE
from amd_plugin.plan.calls import Tensors
from amd_plugin.plan.trace import Trace

# Elements, as in recipes/launch/deepspeed_trained_zero3.json.
BUCKET = 100_000_000
# Tensors of the largest size that ZeRO-3 may hold gathered: four, and one that is prefetched.
GATHERED = 5
# Allowance for the CUDA context, NCCL and fragmentation, which are not computed.
RESERVED = 4_000_000_000


@dataclass
class Row:
    """One role's bytes on one GPU.

    Attributes:
        weights: bytes of the weights.
        gradients: bytes of the gradients, between first backward pass and update.
        optimizer: bytes of the optimizer's state.
        average: bytes of the weights' EMA.
        buffers: bytes of communication buffers.
        activations: most bytes of activations in the role's turn.
    """

    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    average: int = 0
    buffers: int = 0
    activations: int = 0

    @property
    def lasting(self) -> int:
        """Bytes that are held at all times."""
        return self.weights + self.optimizer + self.average + self.buffers

    def as_dict(self) -> dict[str, int]:
        """Bytes by column."""
        return asdict(self)


def trained_row(role: Tensors, stage: str, gpus: int, *, averaged: bool, shared: bool) -> Row:
    """Bytes of student or fake score.

    Args:
        role: tensors of the role, the trained ones in the precision in which the engine keeps them.
        stage: value of the recipe's ``distributed.trained``.
        gpus: number of GPUs.
        averaged: whether an EMA of its weights is kept, as of the student's.
        shared: whether its base is another role's.
    """
    (count, size, tensors), (_, base, _) = role.trained, role.frozen
    average = 4 * count if averaged else 0
    if stage == "none":
        buckets = size if gpus > 1 and not shared else 0
        return Row(size + base, size, 8 * count + 4 * tensors, average, buckets)
    width = size // count
    shares = {"gradients": share(size, gpus), "optimizer": share(12 * count, gpus), "average": share(average, gpus)}
    bucket = min(count, BUCKET) * width
    if stage == "zero2":
        return Row(size + base, buffers=2 * bucket, **shares)
    gathered = min(count, GATHERED * role.largest) * width
    return Row(share(size + base, gpus), buffers=bucket + gathered, **shares)


def teacher_row(role: Tensors, stage: str, gpus: int) -> Row:
    """Bytes of the frozen teacher, or of the base that it shares; `stage` is the recipe's ``distributed.teacher``."""
    count, size, _ = role.frozen
    if stage == "none":
        return Row(size)
    gathered = min(count, GATHERED * role.largest) * (size // count)
    return Row(0 if stage == "zero3_offload" else share(size, gpus), buffers=gathered)


def turns(calls: dict[str, Trace], config: RecipeConfig, needs: Needs, media: int, rows: int) -> dict[str, int]:
    """Most bytes of activations in the fake score's and in the student's turn, by role.

    Args:
        calls: traces of the network calls.
        config: the recipe.
        needs: needs of the objective.
        media: bytes of one decoded sample.
        rows: number of samples of this process.
    """
    student, fake_score = calls["student"], calls["fake_score"]
    parts = config.train.accumulation
    whole = rows * media
    decoding = max(calls["decode"].peak + whole - whole // parts, 2 * whole if parts > 1 else whole) if needs.reward else 0
    judged = max(calls["teacher"].peak, calls["score"].peak, decoding if parts == 1 else 0)
    if needs.reward_gradient:
        judged = max(judged, calls["decode with gradient"].peak)
    first = max(calls["rollout"].peak, decoding)
    return {
        "fake_score": max(first, fake_score.peak),
        "student": max(
            first if parts > 1 else calls["rollout"].peak, student.held + judged, _one_on_the_other(graphs(calls, needs))
        ),
    }


def graphs(calls: dict[str, Trace], needs: Needs) -> list[Trace]:
    """The networks' graphs of one student loss, in the order in which they are made.

    That of a discriminator ends in the middle of the fake score and leads to the samples alone; it is counted as a whole one.
    """
    again = needs.student_prediction or needs.transition_density
    student, fake_score = calls["student"], calls["fake_score"]
    return [student, *([student] if again else []), *([fake_score] if needs.discriminator is not None else [])]


def _one_on_the_other(made: list[Trace]) -> int:
    """Most bytes while graphs are made one after the other, and freed in reverse order."""
    return max(trace.peak + sum(before.held for before in made[:index]) for index, trace in enumerate(made))


def failures(config: RecipeConfig, sample: int) -> int:
    """Most bytes of the memory of failures, which keeps samples of `sample` bytes of each exit rung."""
    return config.model.student_steps * min(SIZE, max(1, BYTES // sample)) * sample


def whole_batch(config: RecipeConfig, sample: int, guided_apart: bool) -> int:
    """Bytes of the noise for the whole batch, which every process draws: initial, for re-noising, and for guidance."""
    return config.train.batch_size * sample * (3 if guided_apart else 2)


def kept_samples(config: RecipeConfig, sample: int, rows: int) -> int:
    """Bytes of the `rows` student samples of this process that are kept between calls, with the student's inputs."""
    train, per_row = config.train, 2
    if train.harvests(config.model.student_steps):
        per_row = train.rollout_sets * config.model.student_steps + 2  # all samples, a turn's own, and its inputs
    return rows * sample * per_row


def media_bytes(size: tuple[int, ...] | None) -> int:
    """Bytes of one decoded sample in fp32; 0 where samples are not decoded."""
    return 0 if size is None else 3 * 4 * prod(size)


def share(total: int, gpus: int) -> int:
    """Bytes of one process's shard, rounded up."""
    return -(-total // gpus)
