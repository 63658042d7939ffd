"""Rows of a host's data that stand several times in one joined batch."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from amd_plugin.adapters.own_options import split_options
from amd_plugin.adapters.ranks import Ranks
from amd_plugin.adapters.repeated_rows import repeated_rows, rows_per_batch
from amd_plugin.errors import InputError


class Rank(Ranks):
    """One of `count` ranks, without processes."""

    rank = count = 0

    def __init__(self, rank, count):
        self.rank, self.count = rank, count


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 16), st.integers(1, 40))
def test_every_row_has_its_group_in_one_joined_batch_in_the_order_of_the_epoch(count, batch_size, group_size, size):
    rows = torch.randperm(size, generator=torch.Generator().manual_seed(size))
    if batch_size * count % group_size:
        with pytest.raises(InputError, match=r"amd\.group_size: must divide the joined batch"):
            rows_per_batch(group_size, batch_size, Rank(0, count), "amd.group_size")
        return
    each = rows_per_batch(group_size, batch_size, Rank(0, count), "amd.group_size")
    own = [repeated_rows(rows, group_size, batch_size, Rank(rank, count)).view(-1, batch_size) for rank in range(count)]
    joined = torch.cat(own, 1)  # [batches, samples of all ranks]
    groups = joined.view(len(joined), each, group_size)
    assert (groups == groups[..., :1]).all(), "neighbours, so that as few ranks as possible have a part of a group"
    epoch = groups[..., 0].flatten()
    assert (epoch[:size] == rows).all() and size <= len(epoch) < size + each
    assert (epoch[size:] == rows.repeat(each)[: len(epoch) - size]).all(), "the last batch is filled from the start"


def test_a_single_sample_per_row_is_how_rows_are_dealt_out_anyway():
    assert [repeated_rows(torch.arange(8), 1, 2, Rank(rank, 2)).tolist() for rank in (0, 1)] == [[0, 1, 4, 5], [2, 3, 6, 7]]


@pytest.mark.parametrize("size", [0, -2, 2.0, "4", True, None], ids=repr)
def test_a_group_size_is_a_whole_number(size):
    with pytest.raises(InputError, match=r"method\.amd\.group_size: must be a whole number from 1"):
        split_options({"group_size": size}, "method.amd")
