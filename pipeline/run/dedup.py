"""Compares the hashes of very many rows in little memory.

Rows are divided into buckets by the hash of their id, so that equal rows share a bucket. A bucket beyond a few
kibibytes is written to disk, and one bucket at a time is read: 32 bytes for each of a 256th of the rows.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
from numpy.typing import NDArray

BUCKET_COUNT = 256
SPOOL_BYTES = 2**16  # of a bucket in memory
MAX_BUFFERED_ROWS = 2**18  # rows that are divided into buckets at once
HASHED_ROW_DTYPE = np.dtype(
    [
        ("id", "<u8"),
        ("high", "<u8"),  # of (id, question)
        ("low", "<u8"),
        ("at", "<u8"),  # the row's number
    ]
)

HashedRows = NDArray[np.void]


class HashBuckets:
    """Row hashes by bucket. Iterating gives the buckets, always in the same order."""

    def __init__(self) -> None:
        self.stack = ExitStack()
        open_file = tempfile.SpooledTemporaryFile
        self.bucket_files: list[Any] = [self.stack.enter_context(open_file(SPOOL_BYTES)) for _ in range(BUCKET_COUNT)]
        self.buffered_arrays: list[HashedRows] = []
        self.buffered_rows = 0
        self.row_count = 0

    def __enter__(self) -> HashBuckets:
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def add_hashes(self, hashes: NDArray[np.uint64]) -> None:
        """Add rows of three hashes each. Rows are numbered in the order in which they are added."""
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
        buckets = rows["id"] % BUCKET_COUNT
        order = np.argsort(buckets, kind="stable")
        ends = np.searchsorted(buckets[order], np.arange(BUCKET_COUNT), side="right")
        for file, bucket_rows in zip(self.bucket_files, np.split(rows[order], ends[:-1]), strict=True):
            file.write(bucket_rows.tobytes())

    def __iter__(self) -> Iterator[HashedRows]:
        self.flush()
        for file in self.bucket_files:
            file.seek(0)
            yield np.frombuffer(file.read(), HASHED_ROW_DTYPE)


def find_duplicates(bucket: HashedRows) -> tuple[NDArray[np.uint64], list[tuple[int, int]]]:
    """The numbers of rows that repeat an earlier row, and pairs of rows with the same id and different questions."""
    rows = bucket[np.lexsort((bucket["at"], bucket["low"], bucket["high"], bucket["id"]))]
    before, after = rows[:-1], rows[1:]
    same_id = before["id"] == after["id"]
    same_question = (before["high"] == after["high"]) & (before["low"] == after["low"])
    conflicts = np.flatnonzero(same_id & ~same_question)
    pairs = [(int(before["at"][index]), int(after["at"][index])) for index in conflicts]
    return after["at"][same_id & same_question], pairs


def find_common_numbers(rows: HashBuckets, other_rows: HashBuckets) -> NDArray[np.uint64]:
    """The numbers of the rows whose id and question are also among the others."""
    buckets = zip(rows, other_rows, strict=True)
    return np.concatenate([bucket["at"][find_common_rows(bucket, other)] for bucket, other in buckets])


def number_equal_rows(rows: HashBuckets) -> NDArray[np.int64]:
    """A number for each row, which is the same for rows with the same id and question."""
    numbers = np.empty(rows.row_count, np.int64)
    for index, bucket in enumerate(rows):
        numbers[bucket["at"]] = index + BUCKET_COUNT * number_bucket(bucket)
    return np.unique(numbers, return_inverse=True)[1]


def find_common_rows(bucket: HashedRows, other_bucket: HashedRows) -> NDArray[np.bool_]:
    """A mask of the rows in the first bucket whose id and question are also in the second one."""
    numbers = number_bucket(np.concatenate([bucket, other_bucket]))
    is_in_other = np.zeros(len(numbers) + 1, bool)
    is_in_other[numbers[len(bucket) :]] = True
    return is_in_other[numbers[: len(bucket)]]


def number_bucket(bucket: HashedRows) -> NDArray[np.int64]:
    """A number for each row, which is the same for rows with the same id and question."""
    order = np.lexsort((bucket["low"], bucket["high"]))
    high, low = bucket["high"][order], bucket["low"][order]
    starts_group = np.ones(len(bucket), bool)  # equal rows are neighbours and form a group
    starts_group[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
    numbers = np.empty(len(bucket), np.int64)
    numbers[order] = np.cumsum(starts_group)
    return numbers


def match_rows(bucket: HashedRows, other_bucket: HashedRows) -> NDArray[np.int64]:
    """The rows that repeat an earlier row or are also in the other bucket. Three columns: the row's number, that of the
    first row that is the same, and that of the first such row in the other bucket, or -1."""
    both = np.concatenate([bucket, other_bucket])
    is_other = np.arange(len(both)) >= len(bucket)
    order = np.lexsort((both["at"], is_other, both["low"], both["high"], both["id"]))
    keys, numbers, is_other = both[["id", "high", "low"]][order], both["at"][order].astype(np.int64), is_other[order]
    starts_group = np.ones(len(both), bool)
    starts_group[1:] = keys[1:] != keys[:-1]
    group = np.cumsum(starts_group) - 1
    first_numbers = numbers[starts_group]  # by group
    first_others = np.full(len(first_numbers), -1)
    other_groups, first_places = np.unique(group[is_other], return_index=True)
    first_others[other_groups] = numbers[is_other][first_places]
    is_match = ~is_other & ((numbers != first_numbers[group]) | (first_others[group] >= 0))
    matches: NDArray[np.int64] = np.stack([numbers, first_numbers[group], first_others[group]], axis=1)[is_match]
    return matches
