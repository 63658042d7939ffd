"""Prompts, and optionally images, from files, folders or the hub, in an order without state.

Everything is read by `datasets`: as memory-mapped Arrow files, or as a stream. The order is endless, shuffled anew in each
epoch and keyed by the seed: a resumed run asks for its own row numbers and gets the rows of an uninterrupted run.
"""

from __future__ import annotations

import copy
import glob
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import PIL.Image
import pyarrow as pa
import pyarrow.compute as pc
from datasets.packaged_modules.cache.cache import Cache
from huggingface_hub import HfApi, errors, utils

from amd_plugin import cache
from amd_plugin.data.row_readers import FileRows, RowReader, StreamRows
from amd_plugin.errors import InputError, causes, did_you_mean

# Only an empty field is missing: pandas would take prompts that read NA or None for missing, too.
_TABLE: dict[str, Any] = {"keep_default_na": False, "na_values": [""]}
_FILES: dict[str, tuple[str, dict[str, Any]]] = {
    ".txt": ("text", {"encoding": "utf-8-sig", "chunksize": 1 << 20}), ".json": ("json", {}), ".jsonl": ("json", {}),
    ".csv": ("csv", _TABLE), ".tsv": ("csv", {**_TABLE, "sep": "\t"}), ".parquet": ("parquet", {}),
}  # fmt: skip
_COLUMNS = ("prompt", "text", "caption")
# Words of `datasets` and its readers for a source without rows.
_NO_ROWS = ("corresponds to no data", "No columns to parse", "BatchSize must be greater than 0", "at least one example when")


class Row(NamedTuple):
    """A prompt that is not blank, the row's other columns without media, and its decoded image."""

    prompt: str
    columns: dict[str, Any]
    image: PIL.Image.Image | None


class PromptRows:
    """Rows of a file, a folder or a data set on the hub, in an endless order that is shuffled anew in each epoch.

    Args:
        source: a .txt (one prompt per line, blank lines are skipped), .json, .jsonl, .csv, .tsv or .parquet file; a folder of
            images (prompts in its metadata.csv or .jsonl), of parquet files or copied from the hub; or ``owner/name`` on the
            hub.
        column: column of the prompts; by default the first existing one of prompt, text and caption, in any case.
        image_column: column of the images; by default no images are read.
        config, split: part of a folder or of a data set on the hub. A file has the split ``train`` only, and no configs.
        revision: branch, tag or commit on the hub.
        streaming: whether rows are read as they are needed and shuffled within a moving window; nothing is kept on disk.
        shuffle: whether rows are shuffled; False leaves the order of the source.
        seed: seed of the order.
        key: the recipe's key that names the source, for error messages.

    Raises:
        InputError: where the source cannot be used as given. A stream is checked as it is read, so `rows` raises it, too.
    """

    def __init__(
        self, source: str, *, column: str | None = None, image_column: str | None = None, config: str | None = None,
        split: str = "train", revision: str | None = None, streaming: bool = False, shuffle: bool = True, seed: int = 0,
        key: str = "data.source",
    ):  # fmt: skip
        self.source, self.image_column, self.streaming, self._key = source, image_column, streaming, key
        with self._readable():
            data = self._open(Path(source), config, split, revision).with_format("arrow")
            if (first := next(iter(data.iter(batch_size=1)), None)) is None:
                raise self._error("has no rows. Put prompts into it")
            features = data.features or datasets.Features.from_arrow_schema(first.schema)
            self.column = self._check_columns(column, features)
            columns = [name for name, kind in features.items() if name == image_column or not _is_media(kind)]
            self._features = datasets.Features({name: features[name] for name in columns})
            self._skips_blank = data.info.builder_name == "text"
            rows = data.select_columns(columns)
            self._reader: RowReader
            if streaming:
                window, declared = (1000 if image_column else 10_000), None if self._skips_blank else _declared(data, split)
                self._reader = StreamRows(
                    rows, self._usable, self._features, shuffle=shuffle, buffer_size=window, seed=seed, declared=declared,
                    refuse=self._error,
                )  # fmt: skip
            else:
                self._reader = FileRows(rows, self._usable, shuffle=shuffle, seed=seed, refuse=self._error)

    @property
    def num_rows(self) -> int | None:
        """Number of rows of an epoch; None where a stream does not say."""
        return self._reader.num_rows

    def __len__(self) -> int:
        """Number of rows of an epoch; a TypeError where a stream does not say."""
        if self.num_rows is None:
            raise TypeError(f"{self.source} is a stream of unknown length")
        return self.num_rows

    def rows(self, start: int, count: int, images: bool = True) -> list[Row]:
        """Rows `start` to ``start + count`` of the endless order: a function of the data, the seed, `start` and `count` only.

        Images are decoded only with `images`. A stream is cheap to follow; for an earlier row its epoch is read from the
        beginning again.

        Raises:
            InputError: for rows that cannot be used.
        """
        if start < 0 or count < 0:
            raise ValueError(f"start and count must be at least 0, got {start} and {count}")
        with self._readable():
            try:
                return [self._row(record, images) for record in self._reader.records(start, count)]
            except Exception:
                self._reader.reset()
                raise

    def again(self) -> PromptRows:
        """The same rows, with a position of their own in a stream."""
        other = copy.copy(self)
        other._reader = self._reader.again()
        return other

    def _open(self, path: Path, config: str | None, split: str, revision: str | None) -> Any:
        options: dict[str, Any] = {"cache_dir": str(cache.root() / "datasets"), "streaming": self.streaming}
        kind, file_options = _FILES.get(path.suffix.lower(), ("", {}))
        if path.is_dir():
            if any((path / name).is_file() for name in ("state.json", "dataset_dict.json")):
                raise self._error("was written by save_to_disk. Write it with to_parquet instead")
            return datasets.load_dataset(str(path.absolute()), config, split=split, **options)
        if not path.exists():
            near = did_you_mean(path.name, os.listdir(path.parent) if path.parent.is_dir() else ())
            if kind or not _is_hub_id(self.source):
                raise self._error(f"there is no such file or folder.{near} On the hub, a data set is owner/name")
            prepared = self._ask_hub(config, split, revision, options["cache_dir"], near)
            return prepared or datasets.load_dataset(self.source, config, split=split, revision=revision, **options)
        if not kind:
            raise self._error(
                f"must be a folder or one of {', '.join(_FILES)}, got '{path.suffix}'. Convert it, e.g. to .jsonl"
            )
        if split != "train":
            raise self._error(f"must be read as split 'train', the only one of a file, got '{split}'. Leave data.split out")
        if not path.stat().st_size:
            raise self._error("is empty. Put prompts into it")
        return getattr(datasets.Dataset, f"from_{kind}")(glob.escape(str(path)), **options, **file_options)

    def _ask_hub(self, config: str | None, split: str, revision: str | None, cache_dir: str, near: str) -> Any:
        """Asks the hub once; without an answer, returns the data set as it was prepared before.

        `load_dataset` would retry for half a minute before it reports that there is no network.
        """
        try:
            HfApi().dataset_info(self.source, revision=revision, timeout=10)
        except Exception as error:
            if not self.streaming and not isinstance(error, errors.RepositoryNotFoundError | errors.RevisionNotFoundError):
                names = {"repo_id": self.source, "dataset_name": self.source.split("/")[-1], "config_name": config}
                with suppress(ValueError, OSError):
                    prepared = Cache(cache_dir=cache_dir, version="auto", hash="auto", **names)
                    if revision in (None, Path(prepared.cache_dir).name):
                        return prepared.as_dataset(split)
            message = f"is neither a file here nor could it be read from the hub: {_cause(error)}.{near}"
            raise self._error(f"{message} Check the name, or the network") from error
        return None

    def _check_columns(self, column: str | None, features: datasets.Features) -> str:
        if column is None:
            # Benchmarks write "Prompt" too.
            known = [name for wanted in _COLUMNS for name in sorted(features, key=wanted.__ne__) if name.lower() == wanted]
            column = known[0] if known else _COLUMNS[0]
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

    def _usable(self, table: pa.Table, index: Sequence[int]) -> pa.ChunkedArray:
        """Mask of the rows of `table` that are not blank; `index` has their places in the source.

        Raises:
            InputError: for a row that cannot be used.
        """
        prompts = table[self.column]
        prompts.validate(full=True)
        blank = pc.fill_null(pc.equal(pc.utf8_trim_whitespace(prompts), ""), True)
        bad = {"a NUL character. Remove it": pc.match_substring(prompts, "\0")}
        if not self._skips_blank:
            bad["no prompt. Fill it in, or remove the row"] = blank
        if self.image_column:
            image = table[self.image_column]
            path = pc.if_else(pc.is_valid(pc.struct_field(image, "bytes")), None, pc.struct_field(image, "path"))
            missing = [p is not None and "://" not in p and not os.path.exists(p) for p in path.to_pylist()]
            bad["no image, or one that is not there. Add it, or remove the row"] = pc.or_(
                pc.is_null(image), pa.array(missing, pa.bool_())
            )
        for problem, mask in bad.items():
            if (at := pc.index(mask, True).as_py()) >= 0:
                raise self._error(f"{'line' if self.source.endswith('.txt') else 'row'} {index[at] + 1} has {problem}")
        return pc.invert(blank)

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
        """Silences the libraries, and turns their exceptions into one line each."""
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
                if isinstance(error, InputError):
                    raise
                if any(sign in _cause(error) for sign in _NO_ROWS):
                    raise self._error("has no rows. Put prompts into it") from error
                ours = isinstance(error, OSError) and str(cache.root()) in str(error)
                hint = "Set AMD_PLUGIN_CACHE to a folder that can be written" if ours else "Mend it; text must be UTF-8"
                raise self._error(f"cannot be read: {_cause(error)}. {hint}") from error

    def _error(self, message: str) -> InputError:
        return InputError(f"{self._key}: {self.source}: {message}")


def _declared(data: Any, split: str) -> int | None:
    """The number of rows that a stream declares; None where it declares none."""
    info = (data.info.splits or {}).get(split)
    return (info.num_examples or None) if info else None


def _cause(error: BaseException) -> str:
    """The first exception of a chain, in one line."""
    *_, first = causes(error)
    lines = str(first).strip().splitlines() or ["no reason given"]
    return f"{type(first).__name__}: {lines[0].rstrip('.')}"


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
        utils.validate_repo_id(source)  # type: ignore[attr-defined]  # public, but not listed in __all__
        return "/" in source
    return False
