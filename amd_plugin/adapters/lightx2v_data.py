"""LightX2V's training data, with each row for several samples of a joined batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, DistributedSampler, RandomSampler, Sampler

from amd_plugin.adapters.ranks import Ranks
from amd_plugin.adapters.repeated_rows import repeated_rows, rows_per_batch
from amd_plugin.errors import InputError


class RepeatingSampler(Sampler[int]):
    """This rank's rows of each epoch in the order of `repeated_rows`.

    Args:
        rows: all rows of an epoch in their order, the same on every rank.
        group_size, batch_size, ranks, where: arguments of `rows_per_batch`.

    Raises:
        InputError: for a joined batch that does not consist of whole groups.
    """

    def __init__(self, rows: DistributedSampler[Any], group_size: int, batch_size: int, ranks: Ranks, where: str):
        self._rows, self._group_size, self._batch_size, self._ranks = rows, group_size, batch_size, ranks
        self._rows_per_batch = rows_per_batch(group_size, batch_size, ranks, where)

    def set_epoch(self, epoch: int) -> None:
        """LightX2V's call before each epoch, which has an order of its own where the data is shuffled."""
        self._rows.set_epoch(epoch)

    def __iter__(self) -> Iterator[int]:
        own = repeated_rows(torch.tensor(list(self._rows)), self._group_size, self._batch_size, self._ranks)
        return iter(own.tolist())

    def __len__(self) -> int:
        return -(-len(self._rows) // self._rows_per_batch) * self._batch_size


def repeating_loader(loader: Any, group_size: int, ranks: Ranks, where: str) -> DataLoader[Any]:
    """LightX2V's `loader` with the rows of `repeated_rows`, shuffled if it shuffled them.

    Args:
        loader: what LightX2V built for its training data.
        group_size, ranks, where: arguments of `rows_per_batch`.

    Raises:
        InputError: for another kind of loader, and for a joined batch that does not consist of whole groups.
    """
    if not isinstance(loader, DataLoader) or loader.batch_size is None:
        message = f"needs a data loader of rows with a batch_size, as LightX2V's data sets have, got a {type(loader).__name__}"
        raise InputError(f"{where}: {message}. Leave it out")
    shuffled = getattr(loader.sampler, "shuffle", isinstance(loader.sampler, RandomSampler))
    # LightX2V's own sampler, dealing to a single rank: the order of all.
    rows: DistributedSampler[Any] = DistributedSampler(loader.dataset, num_replicas=1, rank=0, shuffle=shuffled)
    return DataLoader(
        loader.dataset, batch_size=loader.batch_size, num_workers=loader.num_workers, collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory, sampler=RepeatingSampler(rows, group_size, loader.batch_size, ranks, where),
    )  # fmt: skip
