"""What a training cycle computes and sends, and the least time that takes: pure arithmetic on traces and sizes.

A cycle is `fake_updates` updates of the fake score and one of the student. Collectives move (N - 1) / N of a tensor into each
of N GPUs when it is gathered or scattered, twice that when it is all-reduced. A call with and without
prompt at once gathers once.
"""

from __future__ import annotations

from dataclasses import dataclass

from amd_plugin.config import RecipeConfig
from amd_plugin.plan.calls import Tensors
from amd_plugin.plan.trace import Trace


@dataclass(frozen=True)
class Machine:
    """What one GPU is declared to do; the defaults are an H100 SXM's data sheet, NVLink in one direction.

    Attributes:
        tflops: 10^12 operations a second in the recipe's precision.
        bandwidth: GB a second into it from other GPUs; over the slowest link, so that of the network with several machines.
        hbm: GB a second of its own memory.
    """

    tflops: float = 989.0
    bandwidth: float = 450.0
    hbm: float = 3350.0


@dataclass(frozen=True)
class Calls:
    """Calls per cycle of one process: the student's rollouts without gradient are a mean over exit rungs."""

    rollout: float
    student: int
    fake_score: int
    score: int
    teacher: int
    decode: int


def calls_of(config: RecipeConfig, rewarded: bool, guided_apart: bool) -> Calls:
    """How often a cycle calls what."""
    train, parts = config.train, config.train.accumulation
    before = (config.model.student_steps - 1) / 2 if train.rollout == "simulate" else 0.0
    again = before + 1 if parts > 1 else 0.0
    return Calls(
        rollout=parts * (train.fake_updates * (before + 1) + before + again),
        student=parts,
        fake_score=parts * train.fake_updates,
        score=parts,
        teacher=parts * (2 if guided_apart else 1),
        decode=parts * (train.fake_updates + 1) if rewarded else 0,
    )


def flops(calls: Calls, traces: dict[str, Trace]) -> dict[str, float]:
    """Operations per cycle and process, by role."""
    total = {name: trace.flops_forward + trace.flops_backward for name, trace in traces.items()}
    return {
        "student": calls.student * total["student"] + calls.rollout * total["rollout"],
        "fake_score": calls.fake_score * total["fake_score"] + calls.score * total["score"],
        "teacher": calls.teacher * total["teacher"],
        "autoencoder": calls.decode * total["decode"],
    }


def received(calls: Calls, sizes: dict[str, Tensors], config: RecipeConfig, gpus: int) -> dict[str, float]:
    """Bytes that come into one GPU per cycle, by role."""
    fraction, how = (gpus - 1) / gpus, config.distributed.trained
    shared = config.model.roles == "shared_base"
    found = {}
    updates = {"student": 1, "fake_score": config.train.fake_updates}
    backward = {"student": calls.student, "fake_score": calls.fake_score}
    forward = {"student": calls.rollout, "fake_score": calls.score}
    for role, times in updates.items():
        trained = sizes[role].trained[1]
        whole = trained + sizes[role].frozen[1]
        if how == "none":
            # A shared base's gradients are joined once per update, the others' in every backward pass.
            found[role] = 2 * fraction * trained * (times if shared else backward[role])
        elif how == "zero2":
            found[role] = fraction * trained * (backward[role] + times)
        else:
            # Forward, backward, and once more where the forward pass is recomputed.
            gathers = 3 if config.train.gradient_checkpointing else 2
            found[role] = fraction * (whole * (forward[role] + gathers * backward[role]) + trained * backward[role])
    base = fraction * sizes["teacher"].frozen[1] if config.distributed.teacher != "none" else 0.0
    found["teacher"] = base * calls.teacher
    if shared:  # its base is gathered for whoever calls
        gathers = 3 if config.train.gradient_checkpointing else 2
        for role in updates:
            found[role] += base * (forward[role] + gathers * backward[role])
    return found


def from_memory(calls: Calls, traces: dict[str, Trace], sizes: dict[str, Tensors]) -> float:
    """Bytes that one GPU's memory moves per cycle at least: weights once a pass, activations written and read once."""
    weights = {role: tensors.trained[1] + tensors.frozen[1] for role, tensors in sizes.items()}
    passes = {
        "student": calls.rollout + 2 * calls.student, "fake_score": calls.score + 2 * calls.fake_score,
        "teacher": calls.teacher,
    }  # fmt: skip
    graphs = 2 * (calls.student * traces["student"].held + calls.fake_score * traces["fake_score"].held)
    return sum(passes[role] * weights[role] for role in passes) + graphs


def seconds(operations: float, incoming: float, moved: float, machine: Machine) -> dict[str, float]:
    """Per cycle: of each resource by itself; at best, all at once; at worst of these, one after the other."""
    compute, network, memory = operations / machine.tflops / 1e12, incoming / machine.bandwidth / 1e9, moved / machine.hbm / 1e9
    each = {"compute": compute, "network": network, "memory": memory}
    return {**each, "overlapped": max(each.values()), "one after the other": max(compute, memory) + network}
