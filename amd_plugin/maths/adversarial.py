"""The adversarial branch of DMD2 (2405.14867, Section 4.3): a discriminator tells student samples from real ones, both noised.

The maths only: logits in, losses out. Which features the discriminator looks at, and its optimizer, are the host's.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from amd_plugin.errors import OptionError


class Adversarial(NamedTuple):
    """Weights of the branch.

    Attributes:
        weight: of the student's part beside its matching loss.
        r1: weight of the approximate R1 penalty (2501.08316, Eq. 2); 0 turns it off.
        r1_sigma: standard deviation of the noise that penalty adds to real samples.
    """

    weight: float
    r1: float = 0.0
    r1_sigma: float = 0.01

    def student_loss(self, logits: Tensor) -> Tensor:
        """Scalar from the logits [B] of student samples: high where they are taken for student samples."""
        return self.weight * softplus(-logits.float()).mean()

    def discriminator_loss(self, real: Tensor, fake: Tensor, perturbed: Tensor | None = None) -> Tensor:
        """Scalar from logits [B]: non-saturating, plus how much a little noise on real samples changes their logits.

        Args:
            real, fake: of noised real and student samples.
            perturbed: of the same real samples with `r1_sigma` noise added to them; needed where `r1` is not 0.
        """
        loss = (softplus(-real.float()) + softplus(fake.float())).mean()
        if self.r1 and perturbed is not None:
            loss = loss + self.r1 * (real - perturbed).float().square().mean()
        return loss


def adversarial(weight: float, r1: float, r1_sigma: float) -> Adversarial | None:
    """The branch, or None at weight 0.

    Raises:
        OptionError: for a value out of range, naming it as objectives do: ``gan_weight``, ``gan_r1``, ``gan_r1_sigma``.
    """
    for option, value in (("gan_weight", weight), ("gan_r1", r1), ("gan_r1_sigma", r1_sigma)):
        if not (torch.isfinite(torch.tensor(value)) and value >= 0):
            raise OptionError(option, f"must be a number of at least 0, got {value}")
    return Adversarial(weight, r1, r1_sigma) if weight else None
