"""Running measurements of the fake score's contrast between success and failure, on samples that it was not trained on.

With c = F_good - F_bad, the middle m = (F_good + F_bad) / 2 and an outcome y of -1 or 1, a calibrated fake score has
``E[2 y <c, x0 - m>] = E[|c|^2]``: samples that succeeded lie on the side that the contrast points to, as far as it is long. A
contrast that is noise has 0 on the left. The quotient is the *reliability* of the contrast, the factor that makes it the best
predictor of samples that the fake score has not seen.
"""

import torch
from torch import Tensor

from amd_plugin.maths.advantage_guidance import KAPPA
from amd_plugin.maths.coherence import BANDS, band
from amd_plugin.maths.prediction import widen
from amd_plugin.maths.signals import Direction

MATCH, CONTRAST, ALONG, AGREEMENT, NOISE = range(5)


class ContrastStatistics:
    """Running means over student turns of quadratic forms of match and contrast, by third of the noise schedule.

    Each sample counts by the inverse of its squared distance to the teacher's prediction, as in the normaliser.

    Attributes:
        turn: sums [3, 5] over this process's samples of the student turn under way; a host averages them over processes.
    """

    MOMENTUM = 0.99

    def __init__(self) -> None:
        self.turn = torch.zeros(len(BANDS), 5, dtype=torch.float64)
        self.running = torch.zeros(len(BANDS), 5, dtype=torch.float64)

    def update(self, direction: Direction) -> None:
        """Adds the samples of a direction that is not normalised; without a contrast or advantages it changes nothing."""
        signals = direction.signals
        contrast = signals.contrast()
        if contrast is None or signals.advantage is None or signals.fake_good is None:
            return
        c, match = contrast.flatten(1), direction.match.flatten(1)
        x0, good = widen(signals.x0.detach()).flatten(1), widen(signals.fake_good.detach()).flatten(1)
        weight = 1 / (x0 - widen(signals.real_cond.detach()).flatten(1)).square().mean(1).clamp(min=1e-8)
        outcome = KAPPA * widen(signals.advantage.detach()).to(c)
        forms = (match.square(), c.square(), match * c, 2 * outcome[:, None] * c * (x0 - good + c / 2))
        values = torch.stack([weight * form.mean(1) for form in forms], 1).double()
        values = torch.cat((values, values[:, AGREEMENT:].square()), 1)
        sigma = torch.zeros(len(c), device=c.device) if signals.sigma is None else signals.sigma
        self.turn = self.turn.to(c.device).index_add(0, band(sigma), values)

    def finish_turn(self) -> None:
        """Adds the sums of the turn, averaged over processes by now, to the running means."""
        if self.turn.any():
            self.running = self.MOMENTUM * self.running.to(self.turn) + self.turn
            self.turn = torch.zeros_like(self.turn)

    def state_dict(self) -> list[list[float]]:
        """JSON-able running means."""
        running: list[list[float]] = self.running.tolist()
        return running

    def load_state_dict(self, state: list[list[float]]) -> None:
        """Restores what `state_dict` gave."""
        self.running = torch.tensor(state, dtype=torch.float64)


def ratio(sums: Tensor) -> Tensor:
    """Length of the contrast over that of the matching term, from `sums` [..., 5]; 0 where nothing was measured."""
    return _quotient(sums[..., CONTRAST], sums[..., MATCH]).sqrt()


def reliability(sums: Tensor) -> Tensor:
    """Reliability of the contrast; about 0 for noise and 1 for a calibrated one; 0 where nothing was measured."""
    return _quotient(sums[..., AGREEMENT], sums[..., CONTRAST])


def tilt(sums: Tensor) -> Tensor:
    """Scale gamma at which the student would be at rest where it is: how far it is tilted already along the contrast."""
    return -_quotient(sums[..., ALONG], sums[..., CONTRAST])


def confidence(sums: Tensor) -> Tensor:
    """Share in [0, 1] of the measured agreement that is not chance, ``1 - 4 / z^2``; 0 below two standard errors."""
    agreement = sums[..., AGREEMENT]
    chance = _quotient(4 * sums[..., NOISE], agreement.square())
    return torch.where(agreement > 0, (1 - chance).clamp(min=0), 0.0)


def _quotient(numerator: Tensor, denominator: Tensor) -> Tensor:
    return torch.where(denominator > 0, numerator / denominator.clamp(min=torch.finfo(denominator.dtype).tiny), 0.0)
