"""Does the matching direction agree with itself? A measure of how far a teacher can be trusted where samples fail.

In a Forbidden Zone the teacher's prediction is said to be incoherent; amplifying the matching term there would amplify noise.
Samples of one prompt are re-noised independently, so their matching directions are independent draws. These agree where the
teacher's prediction is reliable and point anywhere where it is not. They exist already: no further forward pass is needed.
"""

import torch
from torch import Tensor

from amd_plugin.maths.prediction import widen

BANDS = ("low", "middle", "high")  # thirds of the noise schedule


def band(noise_level: Tensor) -> Tensor:
    """Index [B] into `BANDS` of noise levels [B], fractions in [0, 1] of the schedule.

    Example:
        >>> band(torch.tensor([0.1, 0.5, 1.0]))
        tensor([0, 1, 2])
    """
    return (noise_level.detach() * len(BANDS)).long().clamp(0, len(BANDS) - 1)


def by_band(values: Tensor, noise_level: Tensor) -> dict[str, Tensor]:
    """Mean of `values` [B] in each band of `noise_level` [B]; NaN for a band without samples.

    Example:
        >>> by_band(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0.1, 0.2, 0.9]))
        {'low': tensor(2.), 'middle': tensor(nan), 'high': tensor(5.)}
    """
    bands = band(noise_level)
    masks = {name: (bands == index).to(values) for index, name in enumerate(BANDS)}
    return {name: (values * mask).sum() / mask.sum() for name, mask in masks.items()}


def cosines(direction: Tensor) -> Tensor:
    """Cosine between the directions [B, ...] of every pair of samples, [B, B]; 0 on the diagonal.

    Example:
        >>> cosines(torch.tensor([[2.0, 0.0], [-1.0, 0.0]]))
        tensor([[ 0., -1.],
                [-1.,  0.]])
    """
    flat = widen(direction.detach()).flatten(1)
    unit = flat / flat.norm(dim=1, keepdim=True).clamp(min=1e-12)
    between: Tensor = unit @ unit.T
    return between.fill_diagonal_(0)


class Coherence:
    """Running agreement of the matching direction by noise level, for samples in the zone and for the others.

    Each value is a ratio of running sums, so that batches with many pairs count for more. Pairs are those of one call: two
    samples of a prompt in different micro-batches or on different processes form none.

    Attributes:
        sums: running sums [2, 3, 2], indexed by outside or in the zone, by band, and by (sum of cosines, number of pairs).
        measured: whether `update` was ever called.

    Example:
        Two samples of prompt 0 agree, two of prompt 1 disagree. Only the latter are in the zone:

        >>> coherence, low = Coherence(), torch.full((4,), 0.1)
        >>> match = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
        >>> zone = torch.tensor([False, False, True, True])
        >>> coherence.update(match, low, groups=torch.tensor([0, 0, 1, 1]), zone=zone)
        >>> metrics = coherence.metrics()
        >>> metrics["coherence_outside/low"], metrics["coherence_zone/low"]
        (tensor(1.), tensor(-1.))
    """

    MOMENTUM = 0.98

    def __init__(self) -> None:
        self.sums = torch.zeros(2, len(BANDS), 2)
        self.measured = False

    def update(self, match: Tensor, noise_level: Tensor, groups: Tensor, zone: Tensor) -> None:
        """Adds the matching directions [B, ...] at `noise_level` [B] of `groups` [B]; `zone` [B] is a mask."""
        same_prompt = groups[:, None] == groups
        same_prompt &= ~torch.eye(len(groups), dtype=torch.bool, device=groups.device)
        angles, bands = cosines(match), band(noise_level)
        self.sums, self.measured = self.MOMENTUM * self.sums.to(match.device), True
        for place in range(2):
            for index in range(len(BANDS)):
                selected = (zone == bool(place)) & (bands == index)
                pairs = (same_prompt & selected[:, None] & selected).to(angles)
                self.sums[place, index] += torch.stack(((angles * pairs).sum(), pairs.sum())).to(self.sums)

    def metrics(self) -> dict[str, Tensor]:
        """Coherence by place and band; NaN where nothing was measured."""
        return {
            f"coherence_{name}/{level}": self.sums[place, index, 0] / self.sums[place, index, 1]
            for place, name in enumerate(("outside", "zone"))
            for index, level in enumerate(BANDS)
        }

    def state_dict(self) -> list[list[list[float]]]:
        """JSON-able running sums."""
        sums: list[list[list[float]]] = self.sums.tolist()
        return sums

    def load_state_dict(self, state: list[list[list[float]]]) -> None:
        """Restores what `state_dict` returned."""
        self.sums = torch.tensor(state)
