"""Two ways to read the rows of a data set in an endless order: at any place of files, or one after the other from a stream.

Both orders are shuffled anew in each epoch and keyed by the seed, so that they have no state: row n is always the same row.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Protocol

import datasets
import numpy as np
import pyarrow as pa
import torch
from datasets.table import table_cast

from amd_plugin.errors import InputError
from amd_plugin.randomness import generator

Record = dict[str, Any]
# (rows, their places in the source) -> mask of the rows that are not blank; raises InputError for rows that cannot be used.
Usable = Callable[[pa.Table, Sequence[int]], pa.ChunkedArray]
# message -> the error, with the source's name.
Refusal = Callable[[str], InputError]

# Newer versions read several shards at once, and then sleep for 5 s after each epoch of a stream of parquet files.
_SHARDS = {n: 1 for n in inspect.signature(datasets.IterableDataset.shuffle).parameters if n == "max_buffer_input_shards"}


class RowReader(Protocol):
    """Rows of a source in an endless order.

    Attributes:
        num_rows: number of rows of an epoch; None where a stream does not say.
    """

    num_rows: int | None

    def records(self, start: int, count: int) -> Iterable[Record]:
        """Rows `start` to ``start + count`` of the endless order."""
        ...

    def again(self) -> RowReader:
        """A reader of the same rows with a position of its own."""
        ...

    def reset(self) -> None:
        """Forgets the position, after an error in the middle of reading."""
        ...


class FileRows:
    """Rows of a prepared data set, read at any place at the same cost.

    Args:
        data: the data set, in Arrow format.
        usable: see `Usable`; all rows are checked here.
        shuffle: whether each epoch has a random order; False leaves the order of the source.
        seed: seed of the order.
        refuse: see `Refusal`.
    """

    def __init__(self, data: Any, usable: Usable, *, shuffle: bool, seed: int, refuse: Refusal):
        self._data, self._shuffle, self._seed = data, shuffle, seed
        self._order: tuple[int, torch.Tensor] | None = None
        size, step = len(data), 100_000
        masks = [usable(data[at : at + step], range(at, size)).to_numpy() for at in range(0, size, step)]
        rows = np.concatenate(masks).nonzero()[0]
        if not len(rows):
            raise refuse("has only blank lines. Put prompts into it")
        self._rows = torch.from_numpy(rows) if len(rows) < size else None
        self.num_rows: int | None = len(rows)
        self._length = len(rows)

    def records(self, start: int, count: int) -> Iterator[Record]:
        """Rows `start` to ``start + count`` of the endless order."""
        while count:
            epoch, place = divmod(start, self._length)
            if self._order is None or self._order[0] != epoch:
                draws = generator(self._seed, "prompts", epoch)
                order = torch.randperm(self._length, generator=draws) if self._shuffle else torch.arange(self._length)
                self._order = epoch, order if self._rows is None else self._rows[order]
            index = self._order[1][place : place + count].tolist()
            start, count = start + len(index), count - len(index)
            yield from self._data[index].to_pylist()

    def again(self) -> FileRows:
        """A reader of the same rows that remembers an epoch of its own."""
        return copy.copy(self)

    def reset(self) -> None:
        """Does nothing: there is no position."""


class StreamRows:
    """Rows of a stream, cheap one after the other; for a row before the position its epoch is read from the beginning again.

    Args:
        data: the stream, in Arrow format.
        usable: see `Usable`; rows are checked as they are read.
        features: the columns and their types.
        shuffle: whether rows are shuffled within a moving window.
        buffer_size: number of rows in that window.
        seed: seed of the order.
        declared: number of rows that the source declares, None where it declares none.
        refuse: see `Refusal`.
    """

    def __init__(
        self, data: Any, usable: Usable, features: datasets.Features, *, shuffle: bool, buffer_size: int, seed: int,
        declared: int | None, refuse: Refusal,
    ):  # fmt: skip
        def check(table: pa.Table, index: Sequence[int]) -> pa.Table:
            # The first rows decide on the types: further down, a csv column of whole numbers may have others.
            table = table_cast(table, features.arrow_schema)
            return table.filter(usable(table, index))

        self._data = data.map(check, with_indices=True, batched=True, features=features)
        self._shuffle, self._buffer_size, self._seed, self._refuse = shuffle, buffer_size, seed, refuse
        self._stream: Iterator[Record] | None = None
        self._next = 0
        if next(iter(self._data.iter(batch_size=1)), None) is None:
            raise refuse("has only blank lines. Put prompts into it")
        self.num_rows = self._length = declared

    def records(self, start: int, count: int) -> Iterable[Record]:
        """Rows `start` to ``start + count`` of the endless order."""
        if self._stream is None or start < self._next:
            self._stream, self._next = self.endless(start), start
        passed, self._next = start - self._next, start + count
        return islice(self._stream, passed, passed + count)

    def again(self) -> StreamRows:
        """A reader of the same rows with a position of its own."""
        other = copy.copy(self)
        other.reset()
        return other

    def reset(self) -> None:
        """Forgets the position."""
        self._stream = None

    def endless(self, start: int) -> Iterator[Record]:
        """All rows from `start` on, epoch after epoch.

        Raises:
            InputError: where an epoch has another number of rows than the one before.
        """
        epoch, place = divmod(start, self._length) if self._length else (0, start)
        while True:
            end = place
            for table in self._epoch(epoch, place):
                yield from table.to_pylist()
                end += len(table)
            if self._length is None:
                # If nothing came, the stream is shorter than `place`, by an unknown number of rows.
                self._length = end if end > place else sum(map(len, self._data.iter(batch_size=1000)))
            elif end != self._length:
                raise self._refuse(f"must have {self._length} rows in each epoch, got {end}. Do not change it during a run")
            epoch, place = divmod(epoch * self._length + end, self._length)

    def _epoch(self, epoch: int, place: int) -> Iterator[pa.Table]:
        stream = self._data
        if self._shuffle:
            # A seed per epoch, not `set_epoch`: a stream that skips would then leave its shards in another order.
            seed = generator(self._seed, "prompts", epoch).initial_seed()
            stream = stream.shuffle(seed=seed, buffer_size=self._buffer_size, **_SHARDS)
        stream = stream.skip(place)
        return iter((stream.take(self.num_rows - place) if self.num_rows else stream).iter(batch_size=1000))
