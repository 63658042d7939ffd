"""One rollout per cycle in ModelOpt, whose user calls the turns: the fake score's, then the student's.

A cycle starts with the first fake-score turn after a student's turn. Its rollout gives the samples of all its turns, and its
arguments (latents, conditions, prompts) replace those of the later ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from amd_plugin.adapters.harvest import Harvest, agreed_rung
from amd_plugin.errors import InputError


class Given(NamedTuple):
    """The arguments of a turn that belong to its samples.

    Attributes:
        latents, noise, condition: tensors [B, ...] of the host's methods.
        prompts: prompts [B] for the reward.
        model_kwargs: further arguments of the networks.
    """

    latents: Tensor
    noise: Tensor
    condition: Tensor | None
    prompts: Sequence[str] | None
    model_kwargs: dict[str, Any]


class HarvestedCycle:
    """The rollouts of a cycle, and the turn that the user's loop has come to.

    Args:
        accumulation: number of calls per update, for a loop that accumulates gradients.

    Attributes:
        current: the harvest of the running turn; None before its rollout.
        rung: index of the running turn's rung.
    """

    def __init__(self, accumulation: int):
        self.current: Harvest | None = None
        self._accumulation, self.rung = accumulation, 0
        self._harvests: list[Harvest] = []
        self._calls = {"fake_score": 0, "student": 0}  # of the cycle

    @property
    def is_pending(self) -> bool:
        """Whether samples wait for later turns."""
        return self._calls["fake_score"] > 0 and self._calls["student"] < len(self._harvests)

    def clear(self) -> None:
        """Starts a new cycle."""
        self._harvests, self.current = [], None
        self._calls = dict.fromkeys(self._calls, 0)

    def start_turn(self, role: str, given: Given) -> Given:
        """The arguments of the running turn: `given`, or those of the cycle's rollout.

        Raises:
            InputError: for another batch size than the rollout's.
        """
        if role == "fake_score" and self._calls["student"]:
            self.clear()
        index = self._calls[role]
        self._calls[role] += 1
        micro_batch = index % self._accumulation
        self.current = self._harvests[micro_batch] if micro_batch < len(self._harvests) else None
        if self.current is None:
            return given
        if role == "student":
            self.rung = self.current.rung
            self.current.samples.clear()  # frees the other turns' samples before the graph is made
        else:
            self.rung = self.current.rung_of_fake_score(index // self._accumulation)
        inputs: Given = self.current.inputs
        if len(inputs.latents) != len(given.latents):
            message = f"all batches of a cycle must have one size, got {len(inputs.latents)} and {len(given.latents)} samples"
            raise InputError(f"rollouts: harvest: {message}. Drop the last, smaller batch of your data")
        return inputs

    def add(self, harvest: Harvest) -> None:
        """Keeps the rollout of the running turn, the cycle's first of its micro-batch."""
        self._harvests.append(harvest)
        self.current, self.rung = harvest, harvest.rung_of_fake_score(0)


def cannot_harvest(config: Any) -> str:
    """Why pipelines with ModelOpt's `config` have no rollouts to harvest; empty if they have."""
    if config.student_sample_steps < 2:
        return "needs a student of several steps: with one step a turn makes one call"
    return "" if config.backward_simulation else "needs backward_simulation: without it a turn makes one call from noised data"


@torch.no_grad()
def harvest(pipe: Any, dmd: Any, given: Given, model_kwargs: dict[str, Any]) -> Harvest:
    """The samples of one rollout from noise through all rungs; each has the distribution of ModelOpt's own at its rung.

    ModelOpt re-noises with fresh noise at the exit rung. Where it follows the ODE up to that, the way on is another than to the
    exit, and a rollout takes 2 N - 2 calls in place of N.

    Args:
        pipe: ModelOpt's `DMDPipeline`.
        dmd: its module.
        given: arguments of the turn.
        model_kwargs: arguments of the networks' calls.
    """
    noise, levels = given.noise, [float(t) for t in pipe.config.sample_t_cfg.t_list[:-1]]
    rung = int(agreed_rung(len(levels), noise.device))
    times = [torch.full((len(noise),), level, device=noise.device, dtype=torch.float32) for level in levels]

    def predict(x: Tensor, t: Tensor) -> Tensor:
        x0: Tensor = pipe._predict_x0(pipe.student, x, t, **model_kwargs)
        return x0

    inputs = [(noise.to(torch.float64) * levels[0]).to(noise.dtype)]
    samples = [predict(inputs[0], times[0])]
    path, clean = inputs[0], samples[0]
    for before, t in pairwise(times):
        inputs.append(dmd.add_noise(clean, torch.randn_like(noise), t))
        samples.append(predict(inputs[-1], t))
        if pipe.config.student_sample_type == "ode" and len(samples) < len(times):
            path = dmd.add_noise(clean, dmd.x0_to_eps(clean, path, before), t)
            clean = predict(path, t)
        else:
            clean = samples[-1]
    return Harvest(given, samples, inputs[rung], rung)
