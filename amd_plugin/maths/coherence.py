"""Does the matching direction agree with itself? A measure of how far a teacher can be trusted where samples fail.

In a Forbidden Zone the teacher's prediction is said to be incoherent; amplifying the matching term there would amplify noise.
Samples of one prompt are re-noised with noise and levels of their own, so their matching directions, already computed, are as
many draws: where the teacher knows the way they agree, where it does not they point anywhere. No further forward is needed.
"""

from typing import Any

import torch
from torch import Tensor

from amd_plugin.maths.prediction import widen

BANDS = ("low", "middle", "high")  # thirds of the noise schedule


def band(sigma: Tensor) -> Tensor:
    """Index [B] into `BANDS` of noise levels `sigma` [B], fractions in [0, 1] of the schedule."""
    return (sigma.detach() * len(BANDS)).long().clamp(0, len(BANDS) - 1)


def by_band(values: Tensor, sigma: Tensor) -> dict[str, Tensor]:
    """Mean of `values` [B] in each band of `sigma` [B]; NaN for a band without samples."""
    bands = band(sigma)
    masks = {name: (bands == index).to(values) for index, name in enumerate(BANDS)}
    return {name: (values * mask).sum() / mask.sum() for name, mask in masks.items()}


def cosines(direction: Tensor) -> Tensor:
    """Cosine between the directions [B, ...] of every pair of samples, [B, B]; 0 on the diagonal."""
    flat = widen(direction.detach()).flatten(1)
    unit = flat / flat.norm(dim=1, keepdim=True).clamp(min=1e-12)
    return (unit @ unit.T).fill_diagonal_(0)


class Coherence:
    """Running agreement of the matching direction by noise level, for samples in the zone and for the others.

    Each is a ratio of running sums, so that batches with many pairs count for more. Pairs are those of one call: samples of a
    prompt in different micro-batches or on different processes make none.

    Attributes:
        sums: [2, 3, 2]: outside of the zone or in it, band, (sum of cosines, pairs).
        measured: whether anything was taken in.
    """

    MOMENTUM = 0.98

    def __init__(self) -> None:
        self.sums = torch.zeros(2, len(BANDS), 2)
        self.measured = False

    def update(self, match: Tensor, sigma: Tensor, groups: Tensor, zone: Tensor) -> None:
        """Takes in the matching directions [B, ...] at `sigma` [B] of `groups` [B]; `zone` [B] is a mask."""
        alike = groups[:, None] == groups
        alike &= ~torch.eye(len(groups), dtype=torch.bool, device=groups.device)
        angles, bands = cosines(match), band(sigma)
        self.sums, self.measured = self.MOMENTUM * self.sums.to(match.device), True
        for place in range(2):
            for index in range(len(BANDS)):
                mine = (zone == bool(place)) & (bands == index)
                pairs = (alike & mine[:, None] & mine).to(angles)
                self.sums[place, index] += torch.stack(((angles * pairs).sum(), pairs.sum())).to(self.sums)

    def of(self, sigma: Tensor, zone: Tensor) -> Tensor:
        """Running coherence [B] in [0, 1] where each sample lies; 1 where nothing was measured."""
        sums = self.sums.to(sigma.device)[zone.long(), band(sigma)]
        return torch.where(sums[:, 1] > 0, sums[:, 0] / sums[:, 1].clamp(min=1e-12), 1.0).clamp(0, 1)

    def metrics(self) -> dict[str, Tensor]:
        """By place and band; NaN where nothing was measured."""
        return {
            f"coherence_{where}/{name}": self.sums[place, index, 0] / self.sums[place, index, 1]
            for place, where in enumerate(("outside", "zone"))
            for index, name in enumerate(BANDS)
        }

    def state_dict(self) -> list[Any]:
        """JSON-able."""
        return self.sums.tolist()

    def load_state_dict(self, state: list[Any]) -> None:
        """Takes back what `state_dict` gave."""
        self.sums = torch.tensor(state)
