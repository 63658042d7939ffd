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
    return _divergence_and_slope(widen(advantage.detach()).double(), groups, torch.as_tensor(tilt), of)[0]


def tilt_for(advantage: Tensor, groups: Tensor, nats: float, of: Of = "student") -> Tensor:
    """The lambda, a scalar, whose tilt is `nats` from the teacher; by Newton's method on `divergence_of`.

    All groups have one lambda, so a prompt whose samples differ little is tilted little. It is 0 where no rewards differ, and
    `LARGEST` spreads where no tilt of these samples costs as much: a teacher's n samples allow log n at most.

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
    a = widen(advantage.detach()).double()
    if not len(a) or nats == 0:
        return a.new_zeros(())
    same = (groups[:, None] == groups).to(a)
    centred = a - same @ a / same.sum(1)
    spread = centred.square().mean().sqrt()
    # Relative to the rewards' size, so that rounding in the mean of equal ones is no difference.
    if not spread > 1e-9 * a.abs().max():
        return a.new_zeros(())
    scaled = centred / spread
    tilt = scaled.new_tensor((2 * nats) ** 0.5).clamp(max=LARGEST)  # exact for Gaussian rewards
    for _ in range(STEPS):
        divergence, slope = _divergence_and_slope(scaled, groups, tilt, of)
        step = tilt - (divergence - nats) / slope.clamp(min=1e-12)
        tilt = step.clamp(tilt / 3, 3 * tilt).clamp(max=LARGEST)
    return tilt / spread


def _divergence_and_slope(a: Tensor, groups: Tensor, tilt: Tensor, of: Of) -> tuple[Tensor, Tensor]:
    """The mean over samples of their group's divergence, and its derivative by the tilt."""
    same = groups[:, None] == groups
    sign = 1.0 if of == "teacher" else -1.0
    exponent = torch.where(same, sign * tilt * a, -torch.inf)  # each row: the group of one sample
    tilted = exponent.softmax(1)
    mean = tilted @ a
    log_mean_exp = exponent.logsumexp(1) - same.sum(1).log()
    if of == "teacher":
        variance = tilted @ a.square() - mean.square()
        return (tilt * mean - log_mean_exp).mean(), tilt * variance.mean()
    return (tilt * a + log_mean_exp).mean(), (a - mean).mean()
