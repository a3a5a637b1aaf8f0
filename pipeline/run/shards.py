"""Divides the chunks of a manifest into shards, which several drivers work on at once.

The shard of a chunk depends on the rows of its span alone, so all drivers agree on it without talking to each other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

from pipeline.manifest.chunks import Chunk
from pipeline.run.resume import ResumePlan


class Shard(NamedTuple):
    number: int  # from 1
    total: int

    def __str__(self) -> str:
        return f"{self.number}/{self.total}"

    def holds(self, chunk: Chunk) -> bool:
        return find_shard_number(chunk, self.total) == self.number


def find_shard_number(chunk: Chunk, count: int) -> int:
    return 1 + int(chunk.rows_hash, 16) % count


def narrow_plan(plan: ResumePlan, shard: Shard) -> ResumePlan:
    """What is left for one shard. All chunks of the manifest stay in the plan: parts of none of them are orphans."""
    return replace(
        plan,
        remaining_chunks=tuple(chunk for chunk in plan.remaining_chunks if shard.holds(chunk)),
        other_chunks=tuple(chunk for chunk in plan.remaining_chunks if not shard.holds(chunk)),
        rows=sum(chunk.asked_row_count for chunk in plan.chunks if shard.holds(chunk)),
    )


def count_rows_by_shard(chunks: Iterable[Chunk], count: int) -> list[int]:
    rows = [0] * count
    for chunk in chunks:
        rows[find_shard_number(chunk, count) - 1] += chunk.asked_row_count
    return rows


def hash_chunks(chunks: Sequence[Chunk], *more: object) -> str:
    """What runs on shards of one output must agree on: the rows, how they are cut, and `more`."""
    digest = hashlib.blake2b(repr(more).encode(), digest_size=16)
    for chunk in chunks:
        digest.update(f"{chunk.rows_hash} {chunk.row_count}\n".encode())
    return digest.hexdigest()
