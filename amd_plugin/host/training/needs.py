"""The optional attributes of an objective (`amd_plugin.hookspecs.Objective`), read and written in this file only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from amd_plugin.hookspecs import Objective
from amd_plugin.maths.adversarial import Adversarial


@dataclass(frozen=True)
class Needs:
    """The optional requirements of an objective on its host.

    Attributes:
        recommended_group_size: the number of samples per prompt below which the host warns.
        reward_gradient: whether `Signals.reward` carries a differentiable reward.
        adversarial: the adversarial losses; None without them.
        memory_share: the share in [0, 1) of the fake score's samples that come from the memory of failures.
        memory_size: the number of samples in that memory, per exit rung.
    """

    recommended_group_size: int
    reward_gradient: bool
    adversarial: Adversarial | None
    memory_share: float
    memory_size: int


def needs_of(objective: Any) -> Needs:
    """The requirements of `objective`; an attribute that it lacks requires nothing."""
    memory_share = getattr(objective, "memory_share", 0.0)
    return Needs(
        recommended_group_size=getattr(objective, "recommended_group_size", 1),
        reward_gradient=bool(getattr(objective, "reward_gradient", 0)),
        adversarial=getattr(objective, "adversarial", None),
        memory_share=memory_share,
        memory_size=objective.memory_size if memory_share else 0,
    )


def advantage(objective: Any, reward: Tensor, groups: Tensor, exit_rung: int) -> Tensor:
    """Advantages [B] of the joined batch; only an objective with `per_rung` takes the exit rung.

    Args:
        objective: the objective.
        reward: the rewards [B].
        groups: the prompt ids [B].
        exit_rung: the index of the rung that the samples were taken from.
    """
    rung = (exit_rung,) if getattr(objective, "per_rung", False) else ()
    advantages: Tensor = objective.advantage(reward, groups, *rung)
    return advantages


def sharpening_weights(objective: Any, advantage: Tensor, sigma: Tensor) -> Tensor:
    """Weights [B] of the fake score's loss; only an objective with a `sharpening_sigma` takes noise levels.

    Args:
        objective: the objective.
        advantage: the advantages [B].
        sigma: the noise levels [B], as fractions of the schedule.
    """
    levels = () if getattr(objective, "sharpening_sigma", None) is None else (sigma,)
    weights: Tensor = objective.sharpening_weights(advantage, *levels)
    return weights


def shared_sums(objective: Objective) -> Sequence[Tensor]:
    """The objective's running sums over this process's samples, which the host averages over processes in place."""
    sums: Sequence[Tensor] = getattr(objective, "shared_sums", ())
    return sums


def write_reward_unit(objective: Objective, unit: float) -> None:
    """Writes the reward difference that counts as significant into an objective with a `reward_unit`."""
    if hasattr(objective, "reward_unit"):
        objective.reward_unit = unit


def write_strength_scale(objective: Objective, scale: float) -> None:
    """Writes the factor on the objective's strength for this cycle."""
    objective.strength_scale = scale
