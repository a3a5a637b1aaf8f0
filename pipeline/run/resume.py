"""A manifest and what its output holds already -> the chunks that are left.

A chunk's name follows from the manifest alone: of rows that ask the same, the first asks and the others are left out
of their chunks, whoever has been answered so far. So resume is a listing: a chunk whose object exists is done. Rows
that were answered under a name that no longer stands in the manifest, because it was rewritten or cut elsewhere, are
found in those orphans by (id, question). The driver holds chunks; the hashes of rows are compared bucket by bucket.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.context import Work
from pipeline.errors import JobError
from pipeline.job.spec import Job
from pipeline.manifest.chunks import Chunk, cut, hashes_of, rows_of
from pipeline.manifest.files import File, store_errors, unreadable
from pipeline.output.dead_letters import READERS, split
from pipeline.output.store import Store
from pipeline.run.dedup import Buckets, common, repeated

Cut = tuple[Chunk, NDArray[np.uint64]]
Cutter = Callable[[Job, Sequence[File], str | None], Iterable[Cut]]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a manifest asks, and what of it is left."""

    chunks: tuple[Chunk, ...]  # all of them, in order
    left: tuple[Chunk, ...]
    orphans: tuple[str, ...]  # names of parts that no chunk has any more
    rows: int
    duplicates: int

    @property
    def rows_left(self) -> int:
        return sum(chunk.asked for chunk in self.left)


def cut_here(job: Job, found: Sequence[File], user: str | None) -> Iterator[Cut]:
    """Files cut in this process, one after another."""
    for file in found:
        try:
            yield from cut(job, file, user)
        except store_errors(file.url) as error:
            raise unreadable(file, error) from error


def plan(
    work: Work, found: Sequence[File], store: Store, *, cutter: Cutter = cut_here, limit: int | None = None
) -> Plan:
    """Which chunks there are and which are left to do."""
    existing = {name.removesuffix(".parquet") for name in store.names(f"data/fp={work.fingerprint}")}
    with Buckets() as rows:
        chunks = []
        for chunk, hashes in limited(cutter(work.job, found, work.user), limit):
            rows.add(hashes)
            chunks.append(chunk)
        starts = np.cumsum([0, *(chunk.rows for chunk in chunks)])
        again = repeats(rows, chunks, starts, work)
        for at, offsets in by_chunk(again, starts):
            chunks[at] = replace(chunks[at], without=(*offsets, *chunks[at].without))
        done = {chunk.name for chunk in chunks} & existing  # later parts of what is asked anew are orphans, too
        orphans = sorted(part for part in existing if split(part)[0] not in done)
        left = {at: chunk for at, chunk in enumerate(chunks) if chunk.name not in existing and chunk.asked}
        if left and orphans:
            for at, offsets in by_chunk(answered_in(orphans, rows, store, work.fingerprint), starts):
                if at in left:
                    left[at] = replace(left[at], skip=offsets)
    return Plan(
        chunks=tuple(chunks),
        left=tuple(chunk for chunk in left.values() if chunk.asked),
        orphans=tuple(orphans),
        rows=sum(chunk.asked for chunk in chunks),
        duplicates=len(again),
    )


def limited(cuts: Iterable[Cut], limit: int | None) -> Iterator[Cut]:
    """The first rows only. What lies beyond in the last chunk is not its own, which gives it another name."""
    left = limit
    for chunk, hashes in cuts:
        if left is not None and chunk.rows > left:
            chunk, hashes = replace(chunk, without=tuple(range(left, chunk.rows))), hashes[:left]
        yield chunk, hashes
        left = None if left is None else left - len(hashes)
        if left == 0:
            return


def repeats(rows: Buckets, chunks: Sequence[Chunk], starts: NDArray[np.int64], work: Work) -> NDArray[np.uint64]:
    """The rows that ask what an earlier row asks. The same id with another question is refused."""
    again = [np.empty(0, np.uint64)]
    for bucket in rows:
        later, torn = repeated(bucket)
        for pair in torn:
            refuse([place(at, chunks, starts) for at in pair], work)
        again.append(later)
    return np.concatenate(again)


def place(at: int, chunks: Sequence[Chunk], starts: NDArray[np.int64]) -> tuple[Chunk, int]:
    number = int(np.searchsorted(starts, at, side="right")) - 1
    return chunks[number], at - int(starts[number])


def by_chunk(rows: NDArray[np.uint64], starts: NDArray[np.int64]) -> Iterator[tuple[int, tuple[int, ...]]]:
    """(number of a chunk, offsets in it), both in order."""
    rows = np.sort(rows.astype(np.int64))
    numbers = np.searchsorted(starts, rows, side="right") - 1
    for some in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(numbers)) + 1) if len(rows) else ():
        number = int(numbers[some[0]])
        yield number, tuple((rows[some] - starts[number]).tolist())


def refuse(places: Sequence[tuple[Chunk, int]], work: Work) -> None:
    """Name an id that asks two things. Equal hashes of unequal ids are no reason to refuse."""
    name, again = (
        rows_of(replace(chunk, without=(), skip=()), work.job, work.user)[1][offset][1] for chunk, offset in places
    )
    if name == again:
        where = " and ".join(dict.fromkeys(chunk.file.url for chunk, _ in places))
        raise JobError(
            f"id {name!r} stands twice with different questions in {where}; "
            "input.id must name a column that is unique, or be left out"
        )


def answered_in(parts: Sequence[str], rows: Buckets, store: Store, fingerprint: str) -> NDArray[np.uint64]:
    """The rows of the manifest that those parts answer."""
    with Buckets() as there:
        for hashes in hashes_in(parts, store, fingerprint):
            there.add(hashes)
        return np.concatenate([ours["at"][common(ours, theirs)] for ours, theirs in zip(rows, there, strict=True)])


def hashes_in(parts: Sequence[str], store: Store, fingerprint: str) -> Iterator[NDArray[np.uint64]]:
    """Of the rows of each part, in order."""

    def hashes(name: str) -> NDArray[np.uint64]:
        part = io.BytesIO(store.read(f"data/fp={fingerprint}/{name}.parquet"))
        table = pq.read_table(part, columns=["id", "question"])
        return hashes_of(list(zip(table["id"].to_pylist(), table["question"].to_pylist(), strict=True)))

    with ThreadPoolExecutor(READERS) as readers:
        for start in range(0, len(parts), 4 * READERS):  # not all at once: there may be a million
            yield from readers.map(hashes, parts[start : start + 4 * READERS])
