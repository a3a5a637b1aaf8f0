"""A manifest and what its output holds already -> the chunks that are left.

The driver holds keys and three hashes a row, never rows. Resume is a listing: a chunk whose object exists is done.
Rows that were answered under a chunk that no longer exists, because the manifest was rewritten or cut elsewhere,
are known by (id, question) and not asked again.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.errors import JobError
from pipeline.flow import Work
from pipeline.intake.manifest import Chunk, File, cut, row_digest, rows_of
from pipeline.job import Job
from pipeline.output.write import Store

Cut = tuple[Chunk, NDArray[np.uint64]]
Cutter = Callable[[Job, Sequence[File], str | None], Iterable[list[Cut]]]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a manifest asks, and what of it is left."""

    chunks: tuple[Chunk, ...]  # all of them, in order
    left: tuple[Chunk, ...]
    rows: int
    rows_left: int
    duplicates: int


def cut_here(job: Job, found: Sequence[File], user: str | None) -> Iterable[list[Cut]]:
    """Files cut in this process, one after another."""
    for file in found:
        yield list(cut(job, file, user))


def plan(
    work: Work, found: Sequence[File], store: Store, *, cutter: Cutter = cut_here, limit: int | None = None
) -> Plan:
    """Which chunks there are and which are left to do."""
    cuts = limited((one for each in cutter(work.job, found, work.user) for one in each), limit)
    existing = {name.removesuffix(".parquet") for name in store.names(f"data/fp={work.fingerprint}")}
    chunks = [chunk for chunk, _ in cuts]
    done = [chunk.key in existing for chunk in chunks]
    skips, duplicates = repeats(cuts, done, work)
    answered = answered_elsewhere(existing - {chunk.key for chunk in chunks}, work, store) if not all(done) else set()
    left = []
    for (chunk, hashes), is_done, skip in zip(cuts, done, skips, strict=True):
        if is_done:
            continue
        elsewhere = (
            [row for row, pair in enumerate(hashes[: chunk.rows, 1:]) if pair.tobytes() in answered] if answered else []
        )
        skipped = tuple(sorted({*chunk.skip, *skip, *elsewhere}))
        if len(skipped) < len(hashes):
            left.append(replace(chunk, skip=skipped))
    return Plan(
        chunks=tuple(chunks),
        left=tuple(left),
        rows=sum(chunk.rows for chunk in chunks) - duplicates,
        rows_left=sum(chunk.rows - sum(row < chunk.rows for row in chunk.skip) for chunk in left),
        duplicates=duplicates,
    )


def limited(cuts: Iterable[Cut], limit: int | None) -> list[Cut]:
    """The first rows only; a chunk cut short is another chunk, with another key."""
    out: list[Cut] = []
    left = limit
    for chunk, hashes in cuts:
        if left is not None and chunk.rows > left:
            if left:
                key = hashlib.blake2b(hashes[:left, 1:].tobytes(), digest_size=12).hexdigest()
                beyond = tuple(range(left, chunk.rows))
                out.append((replace(chunk, key=key, rows=left, skip=beyond), hashes))
            break
        out.append((chunk, hashes))
        left = None if left is None else left - chunk.rows
    return out


def repeats(cuts: Sequence[Cut], done: Sequence[bool], work: Work) -> tuple[list[list[int]], int]:
    """Rows to skip because the same question is asked elsewhere; the same id with another question is refused.

    Of several, the one in a chunk that is done already stays, else the first.
    """
    skips: list[list[int]] = [[] for _ in cuts]
    if not cuts:
        return skips, 0
    rows = np.concatenate([hashes[: chunk.rows] for chunk, hashes in cuts])
    chunk_of = np.repeat(np.arange(len(cuts)), [chunk.rows for chunk, _ in cuts])
    row_of = np.concatenate([np.arange(chunk.rows) for chunk, _ in cuts])
    order = np.lexsort((np.arange(len(rows)), ~np.asarray(done)[chunk_of], rows[:, 0]))
    ids = rows[order, 0]
    first = np.zeros(len(rows), dtype=np.int64)  # for each row, where its id stands first
    starts = np.flatnonzero(np.concatenate([[True], ids[1:] != ids[:-1]]))
    first[starts] = starts
    first = np.maximum.accumulate(first)
    for at in np.flatnonzero(first != np.arange(len(rows))):
        one, other = order[first[at]], order[at]
        if (rows[one] != rows[other]).any():
            refuse(cuts[chunk_of[one]][0], int(row_of[one]), cuts[chunk_of[other]][0], int(row_of[other]), work)
        skips[chunk_of[other]].append(int(row_of[other]))
    return skips, sum(map(len, skips))


def refuse(one: Chunk, one_row: int, other: Chunk, other_row: int, work: Work) -> None:
    """Name an id that asks two things. Equal hashes of unequal ids are no reason to refuse."""
    (name, again) = (
        rows_of(replace(chunk, skip=()), work.job, work.user)[1][row][1]
        for chunk, row in ((one, one_row), (other, other_row))
    )
    if name == again:
        where = one.file.url if one.file == other.file else f"{one.file.url} and {other.file.url}"
        raise JobError(
            f"id {name!r} stands twice with different questions in {where}; "
            "input.id must name a column that is unique, or be left out"
        )


def answered_elsewhere(orphans: Iterable[str], work: Work, store: Store) -> set[bytes]:
    """(id, question) of rows in parts whose chunk is no longer in the manifest."""
    out: set[bytes] = set()
    for key in orphans:
        part = pq.read_table(
            io.BytesIO(store.read(f"data/fp={work.fingerprint}/{key}.parquet")), columns=["id", "question"]
        )
        out |= {row_digest(*pair) for pair in zip(part["id"].to_pylist(), part["question"].to_pylist(), strict=True)}
    return out
