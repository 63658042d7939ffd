"""Running measurements of the fake score's contrast between success and failure, on samples that it was not trained on.

With c = F_good - F_bad, the middle m = (F_good + F_bad) / 2 and an outcome y of -1 or 1, a calibrated fake score has
``E[2 y <c, x0 - m>] = E[|c|^2]``: samples that succeeded lie on the side that the contrast points to, as far as it is long. A
contrast that is noise has 0 on the left. All lengths are relative to |x0 - m|, so that samples and noise levels count alike.
With weights by the inverse square, as in a regression, a few samples at low noise would be all of the sum. The length grows
with the sample's own lead, which takes 1 / D of the left side in D dimensions, to first order in c and for an even spread. The
factor D / (D - 1) gives it back.
"""

import copy

import torch
from torch import Tensor

from amd_plugin.maths.advantage_guidance import KAPPA, failure_probability
from amd_plugin.maths.coherence import BANDS, band, by_band
from amd_plugin.maths.prediction import widen
from amd_plugin.maths.signals import Direction, Signals

RATIO = 0.15  # of the scaled contrast to the matching term; on scenes .15 helps and .3 pays with the Frechet distance
NATS = 0.5  # of divergence from the teacher that the tilt of a converged student may cost
REST = 1.0  # scale at which a converged student rests: there it is the teacher conditioned on success
LARGEST = 15.0  # beyond it the contrast is too short to have an effect

MATCH, CONTRAST, GUIDANCE, ALONG, AGREEMENT, NOISE = range(6)


class ContrastStatistics:
    """Running means over student turns of the lengths of matching and contrast, by third of the noise schedule.

    Matching is towards the guided teacher, as the student is at rest there.

    Attributes:
        turn: sums [3, 7] over this process's samples of the student turn under way, the last column their number. A host
            averages them over processes.
        has_turn: whether there are such sums.
        running: running means [3, 6] over samples and turns; those of the thirds add up to that of the whole schedule. The
            columns are the lengths of matching, of the contrast, and of advantage guidance of scale 1; matching along the
            contrast; agreement of the contrast with outcomes, and the variance of its mean. All are relative to |x0 - m|.
    """

    MOMENTUM = 0.99

    def __init__(self) -> None:
        self.turn = torch.zeros(len(BANDS), 7, dtype=torch.float64)
        self.running = torch.zeros(len(BANDS), 6, dtype=torch.float64)
        self._batch_size = 1
        self.has_turn = False

    @property
    def measured(self) -> bool:
        """Whether any turn had a contrast."""
        return bool(self.running.any())

    def update(self, direction: Direction) -> None:
        """Adds the samples of a direction that is not normalised; without a contrast or advantages it changes nothing.

        A sample whose values are not finite counts as none: one of them would end all measurements of the run.
        """
        signals = direction.signals
        if (parts := _contrast_and_residual(signals)) is None or signals.advantage is None:
            return
        c, residual = parts
        match, tiny = (direction.match + direction.guide).flatten(1), torch.finfo(c.dtype).tiny
        distance, length = residual.norm(dim=1).clamp(min=tiny), c.norm(dim=1).clamp(min=tiny)
        advantage, share = widen(signals.advantage.detach()).to(c), c.shape[1] / max(c.shape[1] - 1, 1)
        agreement = 2 * KAPPA * share * advantage * _cosine(c, residual)
        along, guidance = (match * c).sum(1) / length / distance, failure_probability(advantage) * length / distance
        columns = (match.norm(dim=1) / distance, length / distance, guidance, along, agreement, agreement.square())
        values = torch.stack((*columns, torch.ones_like(distance)), 1).double()
        values = torch.where(values.isfinite().all(1, keepdim=True), values, 0.0)
        sigma = torch.zeros(len(c), device=c.device) if signals.sigma is None else signals.sigma
        self.turn = self.turn.to(c.device).index_add(0, band(sigma), values)
        self.has_turn = True
        self._batch_size = len(c if signals.batch_advantage is None else signals.batch_advantage)

    def finish_turn(self) -> bool:
        """Adds the means of the turn, over all processes by now, to the running means; False if there was none."""
        if not self.has_turn:  # before the device is asked
            return False
        turn, self.has_turn = self.turn.cpu(), False  # once per turn: what follows from the running means is read many times
        count = turn[:, -1].sum()
        means, decay = turn[:, :-1] / count.clamp(min=1), torch.full_like(turn[0, :-1], self.MOMENTUM)
        # The variance of a mean: of one over the batch, and of a sum of independent turns.
        means[:, NOISE] /= self._batch_size
        decay[NOISE] = self.MOMENTUM**2
        self.running, self.turn = decay * self.running + means, torch.zeros_like(self.turn)
        return True

    def state_dict(self) -> list[list[float]]:
        """JSON-able running means, with the turn under way in them. Changes nothing, since hosts save on one process alone."""
        finished = copy.copy(self)
        finished.finish_turn()
        running: list[list[float]] = finished.running.tolist()
        return running

    def load_state_dict(self, state: list[list[float]]) -> None:
        """Restores what `state_dict` gave."""
        self.running = torch.tensor(state, dtype=torch.float64)


def evidence_by_zone(signals: Signals, zone: Tensor) -> dict[str, Tensor]:
    """Mean cosine of the contrast with x0 - m, for samples in the `zone` [B] bool and for the others, by third of the schedule.

    The cosine is high for samples that the contrast takes for successes. It reads no reward, so it marks failures among samples
    that were never scored, too. Empty without a contrast or noise levels.
    """
    if (parts := _contrast_and_residual(signals)) is None or signals.sigma is None:
        return {}
    cosine, metrics = _cosine(*parts), dict[str, Tensor]()
    for name, place in (("zone", zone), ("outside", ~zone)):
        mask = place.to(cosine)
        total, share = by_band(cosine * mask, signals.sigma), by_band(mask, signals.sigma)
        metrics |= {f"contrast_evidence_{name}/{level}": total[level] / share[level] for level in total}
    return metrics


def contrast_metrics(running: Tensor) -> dict[str, Tensor]:
    """The four measurements of the running means [3, 6], for the whole schedule and its thirds, by name."""
    measures = {"ratio": ratio, "reliability": reliability, "tilt": tilt, "confidence": confidence}
    places = {"": running.sum(0), **{f"/{level}": sums for level, sums in zip(BANDS, running, strict=True)}}
    return {f"contrast_{name}{place}": measure(sums) for name, measure in measures.items() for place, sums in places.items()}


def ratio(sums: Tensor) -> Tensor:
    """Length of advantage guidance of scale 1 over that of matching, from `sums` [..., 6]; 0 where nothing was measured."""
    return _quotient(sums[..., GUIDANCE], sums[..., MATCH])


def reliability(sums: Tensor) -> Tensor:
    """Reliability of the contrast; about 0 for noise and 1 for a calibrated one; 0 where nothing was measured."""
    return _quotient(sums[..., AGREEMENT], sums[..., CONTRAST])


def tilt(sums: Tensor) -> Tensor:
    """Scale gamma at which the student would be at rest where it is: how far it is tilted already along the contrast.

    Measured before adaptation, which moves that place.
    """
    return -_quotient(sums[..., ALONG], sums[..., GUIDANCE])


def confidence(sums: Tensor) -> Tensor:
    """Confidence in [0, 1] in the sign of the measured agreement, ``1 - 4 / z^2``; 0 below two standard errors."""
    agreement = sums[..., AGREEMENT]
    chance = _quotient(4 * sums[..., NOISE], agreement.square())
    return torch.where(agreement > 0, (1 - chance).clamp(min=0), 0.0)


def automatic_scale(sums: Tensor, rest: float = REST) -> Tensor:
    """Scale gamma of advantage guidance that follows from what is measured, at least 0; a scalar.

    A student with a tilt above 0 rests at the scale of that tilt. What is more moves it on: a contrast `RATIO` as long as the
    matching term, until the tilt is the scale of rest. All of it counts by the confidence in the contrast.

    Args:
        sums: sums [6] of `ContrastStatistics`.
        rest: scale of rest, at least 0.
    """
    tilted = tilt(sums).clamp(min=0)
    push = (RATIO * _quotient(torch.ones_like(sums[MATCH]), ratio(sums))).clamp(max=LARGEST)
    room = (1 - tilted / rest).clamp(min=0) if rest else torch.zeros_like(tilted)
    return confidence(sums) * torch.maximum((tilted + push).clamp(max=rest), room * push)


def log_success(advantage: Tensor) -> Tensor:
    """``log P(good | a)`` [B] of samples with `advantage` [B] in [-1, 1]; at rest with scale gamma q is ``p P(good)^gamma``."""
    return torch.log1p(-failure_probability(advantage).double())


def _contrast_and_residual(signals: Signals) -> tuple[Tensor, Tensor] | None:
    """(c, x0 - m), both [B, D]; None without a contrast."""
    contrast = signals.contrast()
    if contrast is None or signals.fake_good is None:  # the second for the type checker: a contrast has both
        return None
    c = contrast.flatten(1)
    return c, widen(signals.x0.detach()).flatten(1) - widen(signals.fake_good.detach()).flatten(1) + c / 2


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    return torch.nn.functional.cosine_similarity(a, b, dim=1, eps=torch.finfo(a.dtype).tiny)


def _quotient(numerator: Tensor, denominator: Tensor) -> Tensor:
    return torch.where(denominator > 0, numerator / denominator.clamp(min=torch.finfo(denominator.dtype).tiny), 0.0)
