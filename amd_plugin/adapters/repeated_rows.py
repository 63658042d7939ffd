"""Rows of a host's data, each for several neighbouring samples of a joined batch: so a prompt has a group, over ranks too."""

from __future__ import annotations

import torch
from torch import Tensor

from amd_plugin.adapters.ranks import Ranks
from amd_plugin.errors import InputError


def rows_per_batch(group_size: int, batch_size: int, ranks: Ranks, where: str) -> int:
    """The number of rows in a joined batch where each row has `group_size` samples.

    Args:
        group_size: number of samples of each row.
        batch_size: number of samples of each rank.
        ranks: the ranks that share a joined batch.
        where: the option's place in the user's configuration, for errors.

    Raises:
        InputError: for a joined batch that does not consist of whole groups.
    """
    joined = batch_size * ranks.count
    if joined % group_size:
        message = f"must divide the joined batch of {joined} samples, {batch_size} on each of {ranks.count} data-parallel ranks"
        raise InputError(f"{where}: {message}, got {group_size}")
    return joined // group_size


def repeated_rows(rows: Tensor, group_size: int, batch_size: int, ranks: Ranks) -> Tensor:
    """The rows [n] of this rank, batch after batch; each of an epoch's rows stands `group_size` times in one joined batch.

    A joined batch has the samples of rank 0 first, then those of rank 1 and so on. So a group lies within a rank where
    `batch_size` allows it, and on neighbouring ranks where not.

    Args:
        rows: indices [N] of an epoch's rows in their order, the same on every rank; the first come again where the last joined
            batch lacks some.
        group_size, batch_size, ranks: arguments of `rows_per_batch`, which has checked them.
    """
    count = batch_size * ranks.count // group_size
    padded = rows[torch.arange(-(-len(rows) // count) * count) % len(rows)]
    return padded.repeat_interleave(group_size).view(-1, ranks.count, batch_size)[:, ranks.rank].flatten()
