"""The ranks that share one batch: rows of all of them from each one's own."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class Ranks:
    """The processes of a group, or this one alone where nothing is distributed.

    Args:
        process_group: their group; None stands for all ranks.

    Attributes:
        rank: this process among them.
        count: their number.
    """

    def __init__(self, process_group: Any = None):
        self._group = process_group

    @property
    def rank(self) -> int:
        """See `Ranks`."""
        return dist.get_rank(self._group) if _is_distributed() else 0

    @property
    def count(self) -> int:
        """See `Ranks`."""
        return dist.get_world_size(self._group) if _is_distributed() else 1

    def own_rows(self, size: int) -> slice:
        """The `size` rows of this rank among those of all ranks, which have equally many each."""
        return slice(self.rank * size, (self.rank + 1) * size)

    def joined(self, rows: Tensor) -> Tensor:
        """Rows [N of all ranks, ...] from `rows` [B, ...], equally many on each rank, in order of rank."""
        if not _is_distributed():
            return rows
        parts = [torch.empty_like(rows) for _ in range(self.count)]
        dist.all_gather(parts, rows.contiguous(), group=self._group)
        return torch.cat(parts)

    def gathered(self, rows: Tensor) -> Tensor:
        """Rows [N of all ranks, ...] from `rows` [n, ...] on the CPU, in order of rank; n may differ between ranks."""
        if not _is_distributed():
            return rows
        device = torch.device("cuda") if dist.get_backend(self._group) == "nccl" else rows.device
        counts = self.joined(torch.tensor([len(rows)], device=device)).tolist()
        padded = torch.zeros((max(counts), *rows.shape[1:]), dtype=rows.dtype, device=device)
        padded[: len(rows)] = rows.to(device)
        parts = self.joined(padded[None])
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)]).cpu()

    def objects(self, own: Any) -> list[Any]:
        """`own` of every rank, in order of rank: anything that can be pickled."""
        if self.count == 1:
            return [own]
        everywhere: list[Any] = [None] * self.count
        dist.all_gather_object(everywhere, own, group=self._group)
        return everywhere


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()
