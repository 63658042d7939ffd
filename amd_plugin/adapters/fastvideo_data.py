"""FastVideo's training data, with each row for several samples of a joined batch."""

from __future__ import annotations

from typing import Any

import torch

from amd_plugin.adapters.fastvideo_host import HOST
from amd_plugin.adapters.ranks import Ranks
from amd_plugin.adapters.repeated_rows import repeated_rows, rows_per_batch
from amd_plugin.errors import InputError


def repeat_rows(loader: Any, group_size: int, ranks: Ranks, where: str) -> None:
    """Gives FastVideo's `loader` the rows of `repeated_rows`, in FastVideo's own random order of them; call it on every rank.

    Args:
        loader: the student's loader, which nobody has iterated yet.
        group_size, ranks, where: arguments of `rows_per_batch`.

    Raises:
        InputError: for another kind of loader, and for a joined batch that does not consist of whole groups.
    """
    kind = HOST.load("fastvideo.dataset.parquet_dataset_map_style").DP_SP_BatchSampler
    sampler = getattr(loader, "batch_sampler", None)
    dealt = getattr(sampler, "sp_group_local_indices", None)
    if not isinstance(sampler, kind) or not isinstance(dealt, torch.Tensor):
        message = f"needs FastVideo's own loader of parquet files ({kind.__name__}), got a {type(loader).__name__}"
        raise InputError(f"{where}: {message}. Leave it out, and let your loader repeat prompts")
    rows_per_batch(group_size, sampler.batch_size, ranks, where)
    # FastVideo deals the rows to the ranks in turn, so the first rows of all ranks come first in its order.
    order = ranks.gathered(dealt).view(ranks.count, -1).T.flatten()
    sampler.sp_group_local_indices = repeated_rows(order, group_size, sampler.batch_size, ranks)
