"""A manifest and what its output holds already -> the chunks that are left.

A chunk's name follows from the manifest alone: of rows that ask the same, the first asks and the others are left out
of their chunks, whoever has been answered so far. So resume is a listing: a chunk whose object exists is done. Rows
that were answered under a name that no longer stands in the manifest, because it was rewritten or cut elsewhere, are
found in those orphans by (id, question). The driver holds chunks; the hashes of rows are compared bucket by bucket.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipeline.context import RunContext
from pipeline.errors import JobError
from pipeline.job.spec import Job
from pipeline.manifest.chunks import Chunk, read_chunk_rows, split_file
from pipeline.manifest.files import ManifestFile, build_unreadable_error, get_store_error_types
from pipeline.manifest.rows import RowReader, hash_row_keys
from pipeline.output.dataset import Dataset, split_part_name
from pipeline.output.store import OutputStore
from pipeline.output.thread_map import map_in_threads
from pipeline.run.dedup import HashBuckets, find_common, find_duplicates

HashedChunk = tuple[Chunk, NDArray[np.uint64]]
ManifestSplitter = Callable[[Job, Sequence[ManifestFile], str | None], Iterable[HashedChunk]]


@dataclass(frozen=True, slots=True)
class ResumePlan:
    """What a manifest asks, and what of it is left."""

    chunks: tuple[Chunk, ...]  # all of them, in order
    remaining_chunks: tuple[Chunk, ...]
    orphan_parts: tuple[str, ...]  # names of parts that no chunk has any more
    rows: int
    duplicate_rows: int

    @property
    def rows_left(self) -> int:
        return sum(chunk.asked_row_count for chunk in self.remaining_chunks)


def split_in_process(job: Job, manifest_files: Sequence[ManifestFile], user: str | None) -> Iterator[HashedChunk]:
    """Files cut in this process, one after another."""
    for file in manifest_files:
        try:
            yield from split_file(job, file, user)
        except get_store_error_types(file.url) as error:
            raise build_unreadable_error(file, error) from error


def build_resume_plan(
    context: RunContext,
    manifest_files: Sequence[ManifestFile],
    store: OutputStore,
    *,
    splitter: ManifestSplitter = split_in_process,
    row_limit: int | None = None,
) -> ResumePlan:
    """Which chunks there are and which are left to do."""
    existing = set(Dataset(store, context.fingerprint).list_parts())
    with HashBuckets() as rows:
        chunks = []
        for chunk, hashes in limit_rows(splitter(context.job, manifest_files, context.schema_prompt), row_limit):
            rows.add_hashes(hashes)
            chunks.append(chunk)
        starts = np.cumsum([0, *(chunk.row_count for chunk in chunks)])
        again = find_duplicate_rows(rows, chunks, starts, context)
        for at, offsets in group_by_chunk(again, starts):
            chunks[at] = replace(chunks[at], excluded_offsets=(*offsets, *chunks[at].excluded_offsets))
        done = {chunk.name for chunk in chunks} & existing  # later parts of what is asked anew are orphans, too
        orphans = sorted(part for part in existing if split_part_name(part)[0] not in done)
        left = {at: chunk for at, chunk in enumerate(chunks) if chunk.name not in existing and chunk.asked_row_count}
        if left and orphans:
            for at, offsets in group_by_chunk(find_answered_rows(orphans, rows, store, context.fingerprint), starts):
                if at in left:
                    left[at] = replace(left[at], answered_offsets=offsets)
    return ResumePlan(
        chunks=tuple(chunks),
        remaining_chunks=tuple(chunk for chunk in left.values() if chunk.asked_row_count),
        orphan_parts=tuple(orphans),
        rows=sum(chunk.asked_row_count for chunk in chunks),
        duplicate_rows=len(again),
    )


def limit_rows(hashed_chunks: Iterable[HashedChunk], row_limit: int | None) -> Iterator[HashedChunk]:
    """The first rows only. What lies beyond in the last chunk is not its own, which gives it another name."""
    left = row_limit
    for chunk, hashes in hashed_chunks:
        if left is not None and chunk.row_count > left:
            chunk, hashes = replace(chunk, excluded_offsets=tuple(range(left, chunk.row_count))), hashes[:left]
        yield chunk, hashes
        left = None if left is None else left - len(hashes)
        if left == 0:
            return


def find_duplicate_rows(
    rows: HashBuckets, chunks: Sequence[Chunk], chunk_starts: NDArray[np.int64], context: RunContext
) -> NDArray[np.uint64]:
    """The rows that ask what an earlier row asks. The same id with another question is refused."""
    again = [np.empty(0, np.uint64)]
    for bucket in rows:
        later, torn = find_duplicates(bucket)
        for pair in torn:
            raise_if_same_id([locate_row(at, chunks, chunk_starts) for at in pair], context)
        again.append(later)
    return np.concatenate(again)


def locate_row(row_number: int, chunks: Sequence[Chunk], chunk_starts: NDArray[np.int64]) -> tuple[Chunk, int]:
    number = int(np.searchsorted(chunk_starts, row_number, side="right")) - 1
    return chunks[number], row_number - int(chunk_starts[number])


def group_by_chunk(
    row_numbers: NDArray[np.uint64], chunk_starts: NDArray[np.int64]
) -> Iterator[tuple[int, tuple[int, ...]]]:
    """(number of a chunk, offsets in it), both in order."""
    row_numbers = np.sort(row_numbers.astype(np.int64))
    numbers = np.searchsorted(chunk_starts, row_numbers, side="right") - 1
    for some in np.split(np.arange(len(row_numbers)), np.flatnonzero(np.diff(numbers)) + 1) if len(row_numbers) else ():
        number = int(numbers[some[0]])
        yield number, tuple((row_numbers[some] - chunk_starts[number]).tolist())


def raise_if_same_id(places: Sequence[tuple[Chunk, int]], context: RunContext) -> None:
    """Name an id that asks two things. Equal hashes of unequal ids are no reason to refuse."""
    name, again = (
        read_chunk_rows(
            replace(chunk, excluded_offsets=(), answered_offsets=()),
            RowReader(context.job, chunk.file, context.schema_prompt),
        )[offset].id
        for chunk, offset in places
    )
    if name == again:
        where = " and ".join(dict.fromkeys(chunk.file.url for chunk, _ in places))
        raise JobError(
            f"id {name!r} stands twice with different questions in {where}; "
            "input.id must name a column that is unique, or be left out"
        )


def find_answered_rows(
    parts: Sequence[str], manifest_rows: HashBuckets, store: OutputStore, fingerprint: str
) -> NDArray[np.uint64]:
    """The rows of the manifest that those parts answer."""
    with HashBuckets() as there:
        for hashes in read_row_hashes(parts, store, fingerprint):
            there.add_hashes(hashes)
        return np.concatenate(
            [ours["at"][find_common(ours, theirs)] for ours, theirs in zip(manifest_rows, there, strict=True)]
        )


def read_row_hashes(parts: Sequence[str], store: OutputStore, fingerprint: str) -> Iterator[NDArray[np.uint64]]:
    """Of the rows of each part, in order."""

    def hashes(part: str) -> NDArray[np.uint64]:
        table = Dataset(store, fingerprint).read_part(part, ["id", "question"])
        return hash_row_keys(list(zip(table["id"].to_pylist(), table["question"].to_pylist(), strict=True)))

    yield from map_in_threads(hashes, parts)
