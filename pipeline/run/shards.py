"""Divides the chunks of a manifest into shards, which several drivers work on at once.

The shard of a chunk depends on the rows of its span alone, so all drivers agree on it without talking to each other.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.manifest.chunk_table import ChunkTable
from pipeline.manifest.hash_arrays import HASH_BYTES
from pipeline.run.resume import ResumePlan


class Shard(NamedTuple):
    number: int  # from 1
    total: int

    def __str__(self) -> str:
        return f"{self.number}/{self.total}"

    def hold(self, chunks: ChunkTable) -> NDArray[np.bool_]:
        are_own: NDArray[np.bool_] = find_shard_numbers(chunks, self.total) == self.number
        return are_own


def find_shard_numbers(chunks: ChunkTable, count: int) -> NDArray[np.int64]:
    """From 1: the hashes of the rows, as numbers, modulo `count`."""
    words = np.frombuffer(chunks.rows_hashes.tobytes(), ">u4").reshape(-1, HASH_BYTES // 4)
    remainders = np.zeros(len(chunks), np.int64)
    for column in words.T:
        remainders = ((remainders << 32) + column) % count
    return remainders + 1


def narrow_plan(plan: ResumePlan, shard: Shard) -> ResumePlan:
    """What is left for one shard. All chunks of the manifest stay in the plan: parts of none of them are orphans."""
    are_own = shard.hold(plan.remaining_chunks)
    return replace(
        plan,
        remaining_chunks=plan.remaining_chunks.select(are_own),
        other_chunks=plan.remaining_chunks.select(~are_own),
        rows=int(plan.chunks.asked_row_counts[shard.hold(plan.chunks)].sum()),
    )


def count_rows_by_shard(chunks: ChunkTable, count: int) -> list[int]:
    rows = np.zeros(count, np.int64)
    np.add.at(rows, find_shard_numbers(chunks, count) - 1, chunks.asked_row_counts)
    return rows.tolist()


def hash_chunks(chunks: ChunkTable, *more: object) -> str:
    """What runs on shards of one output must agree on: the rows, how they are cut, and `more`."""
    digest = hashlib.blake2b(repr(more).encode(), digest_size=16)
    for chunk in chunks:
        digest.update(f"{chunk.rows_hash} {chunk.row_count}\n".encode())
    return digest.hexdigest()
