"""A host's own loss, with a weight for each sample."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def weighted_loss(loss: Callable[..., Tensor], weight: Tensor, *rows: Tensor) -> Tensor:
    """The mean [] of a host's loss with a weight for each sample.

    Args:
        loss: the host's loss, a mean over the batches [n, ...] that it gets.
        weight: weights [B].
        rows: what `loss` gets [B, ...]; one sample at a time, so that each value is that sample's own loss.
    """
    per_sample = torch.stack([loss(*(value[None] for value in sample)) for sample in zip(*rows, strict=True)])
    return (weight.to(per_sample) * per_sample).mean()
