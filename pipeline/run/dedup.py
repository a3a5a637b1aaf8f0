"""Hashes of very many rows -> which of them are equal, in little memory.

Rows are parted by the hash of their id, on disk beyond a few mebibytes, so that equal rows fall into one bucket and
a bucket is all that is held at once: 32 bytes a row, a 256th of the rows.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
from numpy.typing import NDArray

BUCKET_COUNT = 256
SPOOL_BYTES = 2**16  # of each bucket, before it goes to disk
MAX_BUFFERED_ROWS = 2**18  # rows parted in one go
HASHED_ROW_DTYPE = np.dtype(
    [("id", "<u8"), ("high", "<u8"), ("low", "<u8"), ("at", "<u8")]
)  # `high`, `low`: of (id, question)

HashedRows = NDArray[np.void]


class HashBuckets:
    def __init__(self) -> None:
        self.stack = ExitStack()
        spool = tempfile.SpooledTemporaryFile
        self.bucket_files: list[Any] = [self.stack.enter_context(spool(SPOOL_BYTES)) for _ in range(BUCKET_COUNT)]
        self.buffered_arrays: list[HashedRows] = []
        self.buffered_rows = 0
        self.row_count = 0

    def __enter__(self) -> HashBuckets:
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def add_hashes(self, hashes: NDArray[np.uint64]) -> None:
        """Rows of three hashes each; `at` counts them as they come."""
        rows = np.empty(len(hashes), HASHED_ROW_DTYPE)
        rows["id"], rows["high"], rows["low"] = hashes.T
        rows["at"] = np.arange(self.row_count, self.row_count + len(rows))
        self.row_count += len(rows)
        self.buffered_arrays.append(rows)
        self.buffered_rows += len(rows)
        if self.buffered_rows >= MAX_BUFFERED_ROWS:
            self.flush()

    def flush(self) -> None:
        if not self.buffered_arrays:
            return
        rows = np.concatenate(self.buffered_arrays)
        self.buffered_arrays, self.buffered_rows = [], 0
        bucket = rows["id"] % BUCKET_COUNT
        order = np.argsort(bucket, kind="stable")
        ends = np.searchsorted(bucket[order], np.arange(BUCKET_COUNT), side="right")
        for file, some in zip(self.bucket_files, np.split(rows[order], ends[:-1]), strict=True):
            file.write(some.tobytes())

    def __iter__(self) -> Iterator[HashedRows]:
        """Bucket after bucket, always in the same order."""
        self.flush()
        for file in self.bucket_files:
            file.seek(0)
            yield np.frombuffer(file.read(), HASHED_ROW_DTYPE)


def find_duplicates(rows: HashedRows) -> tuple[NDArray[np.uint64], list[tuple[int, int]]]:
    """Of one bucket: `at` of rows that an earlier one equals, and pairs that share an id and ask different things."""
    rows = rows[np.lexsort((rows["at"], rows["low"], rows["high"], rows["id"]))]
    before, after = rows[:-1], rows[1:]
    same_id = before["id"] == after["id"]
    same = same_id & (before["high"] == after["high"]) & (before["low"] == after["low"])
    torn = np.flatnonzero(same_id & ~same)
    return after["at"][same], [(int(before["at"][n]), int(after["at"][n])) for n in torn]


def find_common(rows: HashedRows, others: HashedRows) -> NDArray[np.bool_]:
    """Of one bucket: which of `rows` stand among `others`, too."""
    both = np.concatenate([rows, others])
    order = np.lexsort((both["low"], both["high"]))
    high, low = both["high"][order], both["low"][order]
    new = np.ones(len(both), bool)
    new[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
    kind = np.cumsum(new) - 1
    wanted = np.zeros(len(both), bool)
    wanted[kind[order >= len(rows)]] = True
    found = np.empty(len(both), bool)
    found[order] = wanted[kind]
    return found[: len(rows)]
