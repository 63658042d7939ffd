"""The prompts, and optionally images, that a student is asked for: from wherever people keep them, in an order without state.

Everything is read by `datasets`: as memory-mapped Arrow files, or as a stream. The order is endless, shuffled anew in each
epoch and keyed by the seed: a resumed run asks for its own row numbers and gets what the uninterrupted one would have got.
"""

from __future__ import annotations

import copy
import glob
import inspect
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets.packaged_modules.cache.cache import Cache
from datasets.table import table_cast
from huggingface_hub import HfApi, errors, utils

from amd_plugin import cache
from amd_plugin.errors import InputError, did_you_mean
from amd_plugin.randomness import generator

# Only an empty field is missing: pandas would take prompts that read NA or None for missing, too.
_TABLE: dict[str, Any] = {"keep_default_na": False, "na_values": [""]}
_FILES: dict[str, tuple[str, dict[str, Any]]] = {
    ".txt": ("text", {"encoding": "utf-8-sig", "chunksize": 1 << 20}), ".json": ("json", {}), ".jsonl": ("json", {}),
    ".csv": ("csv", _TABLE), ".tsv": ("csv", {**_TABLE, "sep": "\t"}), ".parquet": ("parquet", {}),
}  # fmt: skip
_COLUMNS = ("prompt", "text", "caption")
# How `datasets` and its readers put it that there is no row.
_NO_ROWS = ("corresponds to no data", "No columns to parse", "BatchSize must be greater than 0", "at least one example when")
# Newer versions read several shards at once, and then sleep for 5 s after each epoch of a stream of parquet files.
_SHARDS = {n: 1 for n in inspect.signature(datasets.IterableDataset.shuffle).parameters if n == "max_buffer_input_shards"}


class Row(NamedTuple):
    """What a student is asked for: a prompt that is not blank, the row's other columns without media, and its decoded image."""

    prompt: str
    columns: dict[str, Any]
    image: PIL.Image.Image | None


class PromptRows:
    """Rows of a file, a folder or a data set on the hub, in an endless order that is shuffled anew in each epoch.

    Args:
        source: a .txt (a prompt a line, blank ones are skipped), .json, .jsonl, .csv, .tsv or .parquet file; a folder of images
            (prompts in its metadata.csv or .jsonl), of parquet files or copied from the hub; or ``owner/name`` on the hub.
        column: of the prompts; default: the first there is of prompt, text and caption.
        image_column: of the images; default: none are read.
        config, split: which part of a folder or a data set on the hub. A file has the split ``train`` only, and no configs.
        revision: branch, tag or commit on the hub.
        streaming: read on the go and shuffle within a moving window; nothing is kept on disk.
        shuffle: False leaves the rows in the order of the source.
        seed: of the order.
        key: the recipe's key that named it, for messages.

    Attributes:
        num_rows: rows of an epoch; None where a stream does not say.

    Raises:
        InputError: the source cannot be used as given. A stream is checked as it is read, so `rows` raises it, too.
    """

    num_rows: int | None

    def __init__(
        self, source: str, *, column: str | None = None, image_column: str | None = None, config: str | None = None,
        split: str = "train", revision: str | None = None, streaming: bool = False, shuffle: bool = True, seed: int = 0,
        key: str = "data.source",
    ):  # fmt: skip
        self.source, self.image_column, self.streaming, self.shuffle, self.seed = source, image_column, streaming, shuffle, seed
        self._key = key
        self._order: tuple[int, torch.Tensor] | None = None
        self._stream: Iterator[dict[str, Any]] | None = None
        with self._readable():
            data = self._open(Path(source), config, split, revision).with_format("arrow")
            if (first := next(iter(data.iter(batch_size=1)), None)) is None:
                raise self._error("has no rows. Put prompts into it")
            features = data.features or datasets.Features.from_arrow_schema(first.schema)
            self.column = self._check_columns(column, features)
            kept = [name for name, kind in features.items() if name == image_column or not _is_media(kind)]
            self._features = datasets.Features({name: features[name] for name in kept})
            self._data, self._skips_blank = data.select_columns(kept), data.info.builder_name == "text"
            self.num_rows = self._length = self._check_stream(split) if streaming else self._check_files()

    def __len__(self) -> int:
        """Rows of an epoch; a TypeError where a stream does not say."""
        if self.num_rows is None:
            raise TypeError(f"{self.source} is a stream of unknown length")
        return self.num_rows

    def rows(self, start: int, count: int, images: bool = True) -> list[Row]:
        """Rows `start` to ``start + count`` of the endless order: a function of the data, the seed, `start` and `count` only.

        Without `images`, none is decoded. A stream is cheap to follow; for a row it has passed, its epoch is read from the
        beginning again.
        """
        if start < 0 or count < 0:
            raise ValueError(f"start and count must be at least 0, got {start} and {count}")
        with self._readable():
            records = self._from_stream(start, count) if self.streaming else self._from_files(start, count)
            return [self._row(record, images) for record in records]

    def again(self) -> PromptRows:
        """The same rows, with a place of their own in a stream."""
        other = copy.copy(self)
        other._stream = None
        return other

    def _open(self, path: Path, config: str | None, split: str, revision: str | None) -> Any:
        where: dict[str, Any] = {"cache_dir": str(cache.root() / "datasets"), "streaming": self.streaming}
        kind, options = _FILES.get(path.suffix.lower(), ("", {}))
        if path.is_dir():
            if any((path / name).is_file() for name in ("state.json", "dataset_dict.json")):
                raise self._error("was written by save_to_disk. Write it with to_parquet instead")
            return datasets.load_dataset(str(path.absolute()), config, split=split, **where)
        if not path.exists():
            near = did_you_mean(path.name, os.listdir(path.parent) if path.parent.is_dir() else ())
            if kind or not _is_hub_id(self.source):
                raise self._error(f"there is no such file or folder.{near} On the hub, a data set is owner/name")
            prepared = self._ask_hub(config, split, revision, where, near)
            return prepared or datasets.load_dataset(self.source, config, split=split, revision=revision, **where)
        if not kind:
            raise self._error(
                f"must be a folder or one of {', '.join(_FILES)}, got '{path.suffix}'. Convert it, e.g. to .jsonl"
            )
        if split != "train":
            raise self._error(f"must be read as split 'train', the only one of a file, got '{split}'. Leave data.split out")
        if not path.stat().st_size:
            raise self._error("is empty. Put prompts into it")
        return getattr(datasets.Dataset, f"from_{kind}")(glob.escape(str(path)), **where, **options)

    def _ask_hub(self, config: str | None, split: str, revision: str | None, where: dict[str, Any], near: str) -> Any:
        """Asks once: `load_dataset` would try for half a minute before it says that there is no network."""
        try:
            HfApi().dataset_info(self.source, revision=revision, timeout=10)
        except Exception as error:
            if not self.streaming and not isinstance(error, errors.RepositoryNotFoundError | errors.RevisionNotFoundError):
                names = {"repo_id": self.source, "dataset_name": self.source.split("/")[-1], "config_name": config}
                with suppress(ValueError, OSError):
                    prepared = Cache(cache_dir=where["cache_dir"], version="auto", hash="auto", **names)
                    if revision in (None, Path(prepared.cache_dir).name):
                        return prepared.as_dataset(split)
            what = f"is neither a file here nor could it be read from the hub: {_cause(error)}.{near}"
            raise self._error(f"{what} Check the name, or the network") from error

    def _check_columns(self, column: str | None, features: datasets.Features) -> str:
        if column is None:
            column = next((name for name in _COLUMNS if name in features), _COLUMNS[0])
        for name in (column, self.image_column or column):
            if name not in features:
                near = did_you_mean(name, features)
                raise self._error(
                    f"must have a column '{name}', got {', '.join(features)}.{near} Name another one in the recipe"
                )
        if getattr(features[column], "dtype", None) not in ("string", "large_string"):
            raise self._error(f"column '{column}' must be text, got {features[column]}. Name another one in the recipe")
        if self.image_column and not isinstance(features[self.image_column], datasets.Image):
            got = features[self.image_column]
            raise self._error(f"column '{self.image_column}' must be images, got {got}. Use a folder with a metadata.csv")
        return column

    def _check_files(self) -> int:
        size, step = len(self._data), 100_000
        usable = [self._usable(self._data[at : at + step], range(at, size)).to_numpy() for at in range(0, size, step)]
        kept = np.concatenate(usable).nonzero()[0]
        self._kept = torch.from_numpy(kept) if len(kept) < size else None
        if not len(kept):
            raise self._error("has only blank lines. Put prompts into it")
        return len(kept)

    def _check_stream(self, split: str) -> int | None:
        def check(table: pa.Table, index: Sequence[int]) -> pa.Table:
            # The first rows decide on the types: further down, a csv column of whole numbers may have others.
            table = table_cast(table, self._features.arrow_schema)
            return table.filter(self._usable(table, index))

        declared = None if self._skips_blank else (self._data.info.splits or {}).get(split)
        self._data = self._data.map(check, with_indices=True, batched=True, features=self._features)
        if next(iter(self._data.iter(batch_size=1)), None) is None:
            raise self._error("has only blank lines. Put prompts into it")
        return (declared.num_examples or None) if declared else None

    def _usable(self, table: pa.Table, index: Sequence[int]) -> pa.ChunkedArray:
        """Mask of the rows that are not blank; raises for what cannot be used. `index` has their places in the source."""
        prompts = table[self.column]
        prompts.validate(full=True)
        blank = pc.fill_null(pc.equal(pc.utf8_trim_whitespace(prompts), ""), True)
        bad = {"a NUL character. Remove it": pc.match_substring(prompts, "\0")}
        if not self._skips_blank:
            bad["no prompt. Fill it in, or remove the row"] = blank
        if self.image_column:
            image = table[self.image_column]
            path = pc.if_else(pc.is_valid(pc.struct_field(image, "bytes")), None, pc.struct_field(image, "path"))
            gone = [p is not None and "://" not in p and not os.path.exists(p) for p in path.to_pylist()]
            bad["no image, or one that is not there. Add it, or remove the row"] = pc.or_(
                pc.is_null(image), pa.array(gone, pa.bool_())
            )
        for what, where in bad.items():
            if (at := pc.index(where, True).as_py()) >= 0:
                raise self._error(f"{'line' if self.source.endswith('.txt') else 'row'} {index[at] + 1} has {what}")
        return pc.invert(blank)

    def _from_files(self, start: int, count: int) -> Iterator[dict[str, Any]]:
        while count:
            epoch, place = divmod(start, len(self))
            if self._order is None or self._order[0] != epoch:
                draws = generator(self.seed, "prompts", epoch)
                order = torch.randperm(len(self), generator=draws) if self.shuffle else torch.arange(len(self))
                self._order = epoch, order if self._kept is None else self._kept[order]
            index = self._order[1][place : place + count].tolist()
            start, count = start + len(index), count - len(index)
            yield from self._data[index].to_pylist()

    def _from_stream(self, start: int, count: int) -> Iterable[dict[str, Any]]:
        if self._stream is None or start < self._next:
            self._stream, self._next = self._endless(start), start
        passed, self._next = start - self._next, start + count
        return islice(self._stream, passed, passed + count)

    def _endless(self, start: int) -> Iterator[dict[str, Any]]:
        epoch, place = divmod(start, self._length) if self._length else (0, start)
        while True:
            end = place
            for table in self._epoch(epoch, place):
                yield from table.to_pylist()
                end += len(table)
            if self._length is None:
                # If nothing came, the stream is shorter than `place`, and does not tell by how much.
                self._length = end if end > place else sum(map(len, self._data.iter(batch_size=1000)))
            elif end != self._length:
                raise self._error(f"must have {self._length} rows in each epoch, got {end}. Do not change it during a run")
            epoch, place = divmod(epoch * self._length + end, self._length)

    def _epoch(self, epoch: int, place: int) -> Iterator[pa.Table]:
        stream = self._data
        if self.shuffle:
            # A seed per epoch, not `set_epoch`: a stream that skips would then leave its shards in another order.
            seed = generator(self.seed, "prompts", epoch).initial_seed()
            stream = stream.shuffle(seed=seed, buffer_size=1000 if self.image_column else 10_000, **_SHARDS)
        stream = stream.skip(place)
        return iter((stream.take(self.num_rows - place) if self.num_rows else stream).iter(batch_size=1000))

    def _row(self, record: dict[str, Any], images: bool) -> Row:
        prompt, image = record.pop(self.column).strip(), None
        if self.image_column:
            picture = record.pop(self.image_column)
            try:
                image = datasets.Image().decode_example(picture) if images else None
            except Exception as error:
                raise self._error(f"the image of {prompt!r} cannot be read: {_cause(error)}. Replace it") from error
        return Row(prompt, self._features.decode_example(record), image)

    @contextmanager
    def _readable(self) -> Iterator[None]:
        """Silences the libraries, and makes one line of what they raise."""
        with ExitStack() as restore:
            for logger in map(logging.getLogger, ("datasets", "huggingface_hub")):
                restore.callback(logger.setLevel, logger.level)
                logger.setLevel(logging.CRITICAL)
            for library in (datasets, utils):
                if not library.are_progress_bars_disabled():
                    restore.callback(library.enable_progress_bars)
                    library.disable_progress_bars()
            try:
                yield
            except Exception as error:
                self._stream = None
                if isinstance(error, InputError):
                    raise
                if any(sign in _cause(error) for sign in _NO_ROWS):
                    raise self._error("has no rows. Put prompts into it") from error
                ours = isinstance(error, OSError) and str(cache.root()) in str(error)
                hint = "Set AMD_PLUGIN_CACHE to a folder that can be written" if ours else "Mend it; text must be UTF-8"
                raise self._error(f"cannot be read: {_cause(error)}. {hint}") from error

    def _error(self, what: str) -> InputError:
        return InputError(f"{self._key}: {self.source}: {what}")


def _cause(error: BaseException) -> str:
    """What went wrong first, in a line."""
    while error.__cause__:
        error = error.__cause__
    lines = str(error).strip().splitlines() or ["no reason given"]
    return f"{type(error).__name__}: {lines[0].rstrip('.')}"


def _is_media(kind: Any) -> bool:
    if isinstance(kind, dict | list | tuple):
        return any(map(_is_media, kind.values() if isinstance(kind, dict) else kind))
    return (
        _is_media(kind.feature)
        if hasattr(kind, "feature")
        else hasattr(kind, "decode_example") and type(kind) is not datasets.Json
    )


def _is_hub_id(source: str) -> bool:
    with suppress(errors.HFValidationError):
        utils.validate_repo_id(source)
        return "/" in source
    return False
