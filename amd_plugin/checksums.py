"""Checksums of files, by which bytes that have changed on a disk are noticed.

XXH3 with 128 bits, read in parts: as fast as memory, and meant against accidents, not against somebody who wants to deceive.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from pathlib import Path

import xxhash

from amd_plugin.disk import regular

PART = 1 << 24  # bytes read at a time


def checksum(path: Path, first: float = inf) -> str:
    """The checksum of the file at `path`, as 32 hexadecimal digits; raises OSError where it cannot be read.

    Args:
        path: the file.
        first: number of bytes after which no further part is read.
    """
    digest, done = xxhash.xxh3_128(), 0
    with regular(path).open("rb") as file:
        while done < first and (part := file.read(PART)):
            digest.update(part)
            done += len(part)
    return digest.hexdigest()


def checksums(folder: Path) -> dict[str, tuple[int, str]]:
    """Name relative to `folder` -> (bytes, checksum), of every file below it; raises OSError where one cannot be read."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): (path.stat().st_size, checksum(path)) for path in files}


def changed(folder: Path, expected: Mapping[str, tuple[int, str]]) -> str:
    """What has become of one of the files in `folder` since `checksums` gave `expected`; empty where all are as they were."""
    for name, (size, digest) in expected.items():
        try:
            # First, since a file with holes may have more bytes than can be read in a day.
            if (actual := regular(folder / name).stat().st_size) != size:
                return f"{name} should have {size} bytes, got {actual}"
            if checksum(folder / name) != digest:
                return f"the bytes of {name} are not those that were written"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror or error}"
        except ValueError:  # a zero, or half a character
            return f"{name!r} is no name of a file"
    return ""
