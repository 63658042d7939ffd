"""The operations and the traffic of a training cycle, and the least time they take: pure arithmetic on traces and sizes.

A cycle is `fake_updates` updates of the fake score and one of the student. An all-gather or a reduce-scatter moves (N - 1) / N
of a tensor into each of N GPUs, an all-reduce twice as much. One call with and without prompt gathers once.
"""

from __future__ import annotations

from dataclasses import dataclass

from amd_plugin.config import RecipeConfig
from amd_plugin.hookspecs import Needs
from amd_plugin.plan.calls import Tensors
from amd_plugin.plan.trace import Trace


@dataclass(frozen=True)
class Machine:
    """The nominal speed of one GPU; the defaults are an H100 SXM's data sheet, with NVLink in one direction.

    Attributes:
        tflops: computing speed in the recipe's precision, in 10^12 operations per second.
        bandwidth: inter-GPU bandwidth into one GPU over the slowest link, in GB per second. With several machines that is the
            network's.
        hbm: bandwidth of the GPU's own memory, in GB per second.
    """

    tflops: float = 989.0
    bandwidth: float = 450.0
    hbm: float = 3350.0


@dataclass(frozen=True)
class Calls:
    """Number of calls per cycle and process.

    Attributes:
        rollout: calls of the student without gradient, a mean over exit rungs.
        student: calls of the student with gradient.
        fake_score: calls of the fake score with gradient.
        score: calls of the fake score without gradient.
        teacher: calls of the teacher.
        decode: calls of the decoder.
        decode_with_gradient: calls of the decoder with gradient.
    """

    rollout: float
    student: float
    fake_score: int
    score: int
    teacher: float
    decode: int
    decode_with_gradient: int = 0


def calls_of(config: RecipeConfig, needs: Needs, *, outcomes: bool = False) -> Calls:
    """Number of calls per cycle.

    Args:
        config: the recipe.
        needs: needs of the objective.
        outcomes: whether the student's turn calls the fake score for both outcomes too.
    """
    train, parts = config.train, config.train.accumulation
    steps = config.model.student_steps
    before = (steps - 1) / 2 if train.rollout == "simulate" else 0.0
    scored_first = 1 if parts > 1 else 0
    rollout, turns = train.fake_updates * (before + 1) + before + scored_first, train.fake_updates + 1
    if train.harvests(steps):
        rollout, turns = train.rollout_sets * steps, min(turns, train.rollout_sets * steps)
    guided_apart = needs.uncond and needs.guidance_range is not None
    # A discriminator sees student and real samples, with R1 those once more; of the student's turn the forward pass counts.
    seen = 0 if needs.discriminator is None else 1 + train.fake_updates * (3 if needs.discriminator.r1 else 2)
    taken = 0 if needs.teacher_path is None else needs.teacher_path[0] / steps  # at the first rung
    return Calls(
        rollout=parts * (rollout + (before if needs.transition_density else 0)),
        student=parts * (1 + needs.student_prediction + (1 - 1 / steps if needs.transition_density else 0)),
        fake_score=parts * train.fake_updates,
        score=parts * ((3 if outcomes else 1) + seen),
        teacher=parts * ((2 if guided_apart else 1) + taken),
        decode=parts * turns if needs.reward else 0,
        decode_with_gradient=parts if needs.reward_gradient else 0,
    )


def flops(calls: Calls, traces: dict[str, Trace]) -> dict[str, float]:
    """Operations per cycle and process, by role."""
    total = {name: trace.flops_forward + trace.flops_backward for name, trace in traces.items()}
    return {
        "student": calls.student * total["student"] + calls.rollout * total["rollout"],
        "fake_score": calls.fake_score * total["fake_score"] + calls.score * total["score"],
        "teacher": calls.teacher * total["teacher"],
        "autoencoder": calls.decode * total["decode"] + calls.decode_with_gradient * total.get("decode with gradient", 0),
    }


def received(calls: Calls, sizes: dict[str, Tensors], config: RecipeConfig, gpus: int) -> dict[str, float]:
    """Bytes received by one GPU per cycle, by role."""
    fraction, stage = (gpus - 1) / gpus, config.distributed.trained
    shared = config.model.roles == "shared_base"
    bytes_in: dict[str, float] = {}
    updates = {"student": 1, "fake_score": config.train.fake_updates}
    backward = {"student": calls.student, "fake_score": calls.fake_score}
    forward = {"student": calls.rollout, "fake_score": calls.score}
    for role, times in updates.items():
        trained = sizes[role].trained[1]
        whole = trained + sizes[role].frozen[1]
        if stage == "none":
            bytes_in[role] = 2 * fraction * trained * times  # gradients are all-reduced once per update
        elif stage == "zero2":
            bytes_in[role] = fraction * trained * (backward[role] + times)
        else:
            # Forward, backward, and once more where the forward pass is recomputed.
            gathers = 3 if config.train.gradient_checkpointing else 2
            bytes_in[role] = fraction * (whole * (forward[role] + gathers * backward[role]) + trained * backward[role])
    base = fraction * sizes["teacher"].frozen[1] if config.distributed.teacher != "none" else 0.0
    bytes_in["teacher"] = base * calls.teacher
    if shared:  # its base is gathered for every role that calls it
        gathers = 3 if config.train.gradient_checkpointing else 2
        for role in updates:
            bytes_in[role] += base * (forward[role] + gathers * backward[role])
    return bytes_in


def from_memory(calls: Calls, traces: dict[str, Trace], sizes: dict[str, Tensors]) -> float:
    """Least number of bytes that one GPU reads and writes per cycle: weights once per pass, activations twice."""
    weights = {role: tensors.trained[1] + tensors.frozen[1] for role, tensors in sizes.items()}
    passes = {
        "student": calls.rollout + 2 * calls.student, "fake_score": calls.score + 2 * calls.fake_score,
        "teacher": calls.teacher,
    }  # fmt: skip
    graphs = 2 * (calls.student * traces["student"].held + calls.fake_score * traces["fake_score"].held)
    return sum(passes[role] * weights[role] for role in passes) + graphs


def seconds(operations: float, incoming: float, moved: float, machine: Machine) -> dict[str, float]:
    """Seconds per cycle: of each resource by itself, of all if they overlap, and of all if network and GPU take turns."""
    compute, network, memory = operations / machine.tflops / 1e12, incoming / machine.bandwidth / 1e9, moved / machine.hbm / 1e9
    each = {"compute": compute, "network": network, "memory": memory}
    return {**each, "overlapped": max(each.values()), "one after the other": max(compute, memory) + network}
