"""The strength of a tilt by its price: the lambda for which ``p exp(lambda a) / Z`` is a given number of nats away from p.

A tilt in units of the reward depends on what these units are. A divergence does not: scaling or shifting a reward changes the
lambda and leaves the tilt as it is.
"""

from typing import Literal

import torch
from torch import Tensor

from amd_plugin.maths.prediction import widen

Of = Literal["student", "teacher"]

STEPS = 24  # of Newton's method; about six are needed
LARGEST = 40.0  # lambda, in spreads of the reward, where no lambda spends the budget


def divergence_of(advantage: Tensor, groups: Tensor, tilt: float | Tensor, of: Of = "student") -> Tensor:
    """``KL(q || p)`` in nats, a scalar: the mean over samples of that of each sample's group, for q ~ p exp(tilt a).

    Args:
        advantage: advantages or rewards a [B], finite, in any unit.
        groups: prompt of each sample [B], as equal numbers for equal prompts.
        tilt: lambda, at least 0.
        of: whose samples these are. The ``teacher``'s are tilted: ``KL = sum_i t_i log(n t_i)`` for t the softmax of lambda a
            over a group of n. Those of a converged ``student`` are tilted already. Its teacher is found by tilting back, and
            ``KL = mean(lambda a) + log mean exp(-lambda a)``.

    Example:
        >>> divergence_of(torch.tensor([-1.0, 1.0]), torch.tensor([0, 0]), tilt=1.0, of="teacher")
        tensor(0.3278, dtype=torch.float64)
    """
    a = widen(advantage.detach()).double()
    return _divergence_and_slope(a, *_members(groups), torch.as_tensor(tilt).to(a), of)[0]


def tilt_for(advantage: Tensor, groups: Tensor, nats: float, of: Of = "student") -> Tensor:
    """The lambda, a scalar, whose tilt is `nats` from the teacher; by Newton's method on `divergence_of`.

    All groups have one lambda, so a prompt whose samples differ little is tilted little. It is 0 where no rewards differ or
    `nats` is 0, and `LARGEST` spreads where no tilt of these samples costs as much: a teacher's n samples allow log n at most.

    Args:
        advantage: advantages or rewards a [B], finite, in any unit.
        groups: prompt of each sample [B], as equal numbers for equal prompts.
        nats: budget of divergence, at least 0.
        of: whose samples these are, see `divergence_of`.

    Example:
        >>> tilt_for(torch.tensor([-1.0, 1.0]), torch.tensor([0, 0]), nats=0.3278, of="teacher")
        tensor(1.0000, dtype=torch.float64)
        >>> tilt_for(torch.tensor([-10.0, 10.0]), torch.tensor([0, 0]), nats=0.3278, of="teacher")
        tensor(0.1000, dtype=torch.float64)
    """
    # On the CPU: these are many steps on few numbers, each of which decides about the next.
    a, (index, count) = widen(advantage.detach()).double().cpu(), _members(groups.cpu())
    if not len(a) or nats == 0:
        return a.new_zeros(())
    centred = a - (torch.zeros_like(count).index_add(0, index, a) / count)[index]
    spread = centred.square().mean().sqrt()
    # Relative to the rewards' size, so that rounding in the mean of equal ones is no difference.
    if not spread > 1e-9 * a.abs().max():
        return a.new_zeros(())
    tilt = a.new_tensor((2 * nats) ** 0.5).clamp(max=LARGEST)  # exact for Gaussian rewards
    for _ in range(STEPS):
        divergence, slope = _divergence_and_slope(centred / spread, index, count, tilt, of)
        before, step = tilt, tilt - (divergence - nats) / slope.clamp(min=1e-12)
        tilt = step.clamp(tilt / 3, 3 * tilt).clamp(max=LARGEST)
        if abs(tilt - before) < 1e-12 * tilt:
            break
    return tilt / spread


def _members(groups: Tensor) -> tuple[Tensor, Tensor]:
    """The place of each sample's group [B] among the G groups, and their sizes [G]."""
    _, index, count = torch.unique(groups, return_inverse=True, return_counts=True)
    return index, count.double()


def _divergence_and_slope(a: Tensor, index: Tensor, count: Tensor, tilt: Tensor, of: Of) -> tuple[Tensor, Tensor]:
    """The mean over samples of their group's divergence, and its derivative by the tilt."""
    exponent = tilt * a if of == "teacher" else -tilt * a
    peak = torch.full_like(count, -torch.inf).scatter_reduce(0, index, exponent, "amax")
    share, none = torch.exp(exponent - peak[index]), torch.zeros_like(count)
    total = none.index_add(0, index, share)
    mean = none.index_add(0, index, share * a) / total
    log_mean_exp = peak + (total / count).log()
    if of == "teacher":
        variance = none.index_add(0, index, share * (a - mean[index]).square()) / total
        part = count / count.sum()
        return (part * (tilt * mean - log_mean_exp)).sum(), tilt * (part * variance).sum()
    return (tilt * a + log_mean_exp[index]).mean(), (a - mean[index]).mean()
