"""The adversarial branch of DMD2 (2405.14867, Section 4.3): a discriminator on noised samples, real and the student's.

The maths only: logits in, losses out. Which features the discriminator reads, and its optimizer, are the host's.
"""

from typing import NamedTuple

from torch import Tensor
from torch.nn.functional import softplus


class Adversarial(NamedTuple):
    """Weights of the branch.

    Attributes:
        weight: weight of the student's adversarial loss beside its matching loss.
        r1: weight of the approximate R1 penalty (2501.08316, Eq. 2); 0 turns it off.
        r1_sigma: standard deviation of the noise that the penalty adds to real samples.
    """

    weight: float
    r1: float = 0.0
    r1_sigma: float = 0.01

    def student_loss(self, logits: Tensor) -> Tensor:
        """Scalar from the logits [B] of student samples: high where the discriminator recognises them.

        Example:
            >>> import torch
            >>> branch = Adversarial(weight=1.0)
            >>> branch.student_loss(torch.tensor([-3.0])) > branch.student_loss(torch.tensor([3.0]))
            tensor(True)
        """
        return self.weight * softplus(-logits.float()).mean()

    def discriminator_loss(self, real: Tensor, fake: Tensor, perturbed: Tensor | None = None) -> Tensor:
        """Scalar from logits [B]: the non-saturating loss, plus the squared change of real logits under a little noise.

        Args:
            real: logits of noised real samples [B].
            fake: logits of noised student samples [B].
            perturbed: logits of the same real samples with `r1_sigma` noise added [B]; needed where `r1` is not 0.

        Example:
            A discriminator that separates the two pays little:

            >>> import torch
            >>> right, wrong = torch.tensor([5.0]), torch.tensor([-5.0])
            >>> branch = Adversarial(weight=1.0)
            >>> branch.discriminator_loss(real=right, fake=wrong) < branch.discriminator_loss(real=wrong, fake=right)
            tensor(True)
        """
        loss = (softplus(-real.float()) + softplus(fake.float())).mean()
        if self.r1 and perturbed is not None:
            loss = loss + self.r1 * (real - perturbed).float().square().mean()
        return loss
