"""Plans a run: the chunks of a manifest, less what its output already holds.

The name of a chunk depends on the manifest alone: if several rows ask the same question of the same id, the first one
keeps it and the others are excluded from their chunks, whether or not they are answered. So a chunk is done if its
part exists. If the manifest was rewritten or is split elsewhere, some parts belong to no chunk any more; the rows that
such orphan parts answer are found by (id, question). The driver holds all chunks, but the hashes of rows only bucket
by bucket.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from pipeline.context import RunContext
from pipeline.errors import JobError
from pipeline.job.spec import Job
from pipeline.manifest.chunk_table import ChunkTable
from pipeline.manifest.chunks import Chunk, read_chunk_rows, split_file
from pipeline.manifest.files import ManifestFile, build_unreadable_error, get_store_error_types
from pipeline.manifest.row_reader import RowReader
from pipeline.output.dataset import Dataset
from pipeline.output.part_index import IndexWriter
from pipeline.output.part_listing import PartListing
from pipeline.run.dedup import HashBuckets, find_duplicates
from pipeline.run.orphans import OrphanRows, RowHashes, RowNumbers, group_by_span, match_orphans

MIN_EARLIER_ROWS = 100  # fewer were a trial
HashedChunk = tuple[Chunk, RowHashes]
ManifestSplitter = Callable[[Job, Sequence[ManifestFile], str | None], Iterable[HashedChunk]]


@dataclass(frozen=True, slots=True)
class ResumePlan:
    parts: PartListing  # all that there were when the plan was made
    chunks: ChunkTable  # of the whole manifest, in order
    remaining_chunks: ChunkTable
    orphans: OrphanRows
    rows: int
    duplicate_rows: int
    labelled_rows: int = 0  # that are not asked, because people have labelled them
    other_chunks: ChunkTable = field(default_factory=lambda: ChunkTable.collect(()))  # left to runs on other shards

    @property
    def rows_left(self) -> int:
        return self.remaining_chunks.asked_row_count


def build_resume_plan(
    context: RunContext,
    manifest_files: Sequence[ManifestFile],
    dataset: Dataset,
    *,
    splitter: ManifestSplitter | None = None,
    row_limit: int | None = None,
    labelled_ids: RowNumbers | None = None,
    index: IndexWriter | None = None,
) -> ResumePlan:
    """`labelled_ids` are hashes of the ids of rows that are not asked. They count only where nothing is committed: a
    chunk without them has another name."""
    parts = dataset.list_parts()
    hashed_chunks = (splitter or split_in_process)(context.job, manifest_files, context.schema_prompt)
    with HashBuckets() as row_hashes:
        labelled_offsets: dict[int, list[int]] = {}

        def hash_chunks() -> Iterator[Chunk]:
            for index, (chunk, hashes) in enumerate(limit_rows(hashed_chunks, row_limit)):
                row_hashes.add_hashes(hashes)
                if labelled_ids is not None and (are_labelled := np.isin(hashes[:, 0], labelled_ids)).any():
                    labelled_offsets[index] = np.flatnonzero(are_labelled).tolist()
                yield chunk

        chunks = ChunkTable.collect(hash_chunks())
        first_rows = chunks.first_rows
        duplicates = find_duplicate_rows(row_hashes, chunks, first_rows, context)
        chunks = exclude_rows(chunks, group_by_span(duplicates, first_rows))
        asked_before = chunks.asked_row_count
        chunks = exclude_labelled_rows(chunks, labelled_offsets, parts)
        are_done = parts.hold(chunks.part_names)
        remaining = chunks
        # Later generations of a chunk whose first part was deleted are orphans, too: all its rows are asked again.
        orphan_parts = parts.select_other_chunks(chunks.part_names[are_done])

        def list_done_parts_with(row_numbers: RowNumbers) -> PartListing:
            indexes = (index for index, _ in group_by_span(row_numbers, first_rows) if are_done[index])
            return parts.select([part for index in indexes for part in parts.list_generations(chunks[index].name)])

        orphans = OrphanRows()
        if orphan_parts:
            orphans, answered_rows = match_orphans(orphan_parts, row_hashes, list_done_parts_with, dataset, index)
            remaining = chunks.replace_chunks(
                {
                    index: replace(chunks[index], answered_offsets=offsets)
                    for index, offsets in group_by_span(answered_rows, first_rows)
                    if not are_done[index]
                }
            )
    return ResumePlan(
        parts=parts,
        chunks=chunks,
        remaining_chunks=remaining.select(~are_done & (remaining.asked_row_counts > 0)),
        orphans=orphans,
        rows=chunks.asked_row_count,
        duplicate_rows=len(duplicates),
        labelled_rows=asked_before - chunks.asked_row_count,
    )


def find_plan_warnings(
    context: RunContext, plan: ResumePlan, dataset: Dataset, labelled_rows: str | None = None
) -> Iterator[str]:
    """Ids that are written in another way than before, or than in a table of labelled rows, are paid for again."""
    if labelled_rows and plan.rows_left and not plan.labelled_rows:
        yield f"--except {labelled_rows} names none of the {plan.rows_left:,} rows that are asked"
    if plan.rows_left and plan.rows_left == plan.rows and plan.orphans.row_count >= MIN_EARLIER_ROWS:
        part = list(plan.orphans.parts)[int(np.argmax(np.diff(plan.orphans.first_rows)))]  # the largest
        earlier_id = dataset.read_part(part, ["id"])["id"][0].as_py()
        now_id = read_row_id(plan.chunks[0], 0, context)
        yield (
            f"none of the {plan.orphans.row_count:,} rows that this output answers is in the manifest, so all "
            f"{plan.rows:,} rows are asked; an id was {earlier_id!r}, the first one is now {now_id!r}"
        )


def split_in_process(
    job: Job, manifest_files: Sequence[ManifestFile], schema_prompt: str | None
) -> Iterator[HashedChunk]:
    for file in manifest_files:
        try:
            yield from split_file(job, file, schema_prompt)
        except get_store_error_types(file.url) as error:
            raise build_unreadable_error(file, error) from error


def limit_rows(hashed_chunks: Iterable[HashedChunk], row_limit: int | None) -> Iterator[HashedChunk]:
    """Only the first rows. The last chunk excludes its rows beyond the limit, which gives it another name."""
    rows_left = row_limit
    for chunk, hashes in hashed_chunks:
        if rows_left is not None and chunk.row_count > rows_left:
            chunk, hashes = (
                replace(chunk, excluded_offsets=tuple(range(rows_left, chunk.row_count))),
                hashes[:rows_left],
            )
        yield chunk, hashes
        rows_left = None if rows_left is None else rows_left - len(hashes)
        if rows_left == 0:
            return


def locate_row(row_number: int, chunks: ChunkTable, first_rows: NDArray[np.int64]) -> tuple[Chunk, int]:
    """The chunk of a row and the offset in it."""
    index = int(np.searchsorted(first_rows, row_number, side="right")) - 1
    return chunks[index], row_number - int(first_rows[index])


def exclude_rows(chunks: ChunkTable, offsets_by_chunk: Iterable[tuple[int, tuple[int, ...]]]) -> ChunkTable:
    return chunks.replace_chunks(
        {
            index: replace(chunks[index], excluded_offsets=(*offsets, *chunks[index].excluded_offsets))
            for index, offsets in offsets_by_chunk
        }
    )


def exclude_labelled_rows(
    chunks: ChunkTable, labelled_offsets: Mapping[int, Sequence[int]], parts: Container[str]
) -> ChunkTable:
    offsets_by_chunk = [
        (index, tuple(offset for offset in offsets if offset not in chunks[index].excluded_offsets))
        for index, offsets in labelled_offsets.items()
        if chunks[index].name not in parts
    ]
    return exclude_rows(chunks, [(index, offsets) for index, offsets in offsets_by_chunk if offsets])


def find_duplicate_rows(
    row_hashes: HashBuckets, chunks: ChunkTable, first_rows: NDArray[np.int64], context: RunContext
) -> RowNumbers:
    """The rows that repeat an earlier row. Raise a JobError if an id asks two different questions."""
    duplicates = [np.empty(0, np.uint64)]
    for bucket in row_hashes:
        repeated, conflicting_pairs = find_duplicates(bucket)
        for pair in conflicting_pairs:
            raise_if_same_id([locate_row(number, chunks, first_rows) for number in pair], context)
        duplicates.append(repeated)
    return np.concatenate(duplicates)


def raise_if_same_id(places: Sequence[tuple[Chunk, int]], context: RunContext) -> None:
    """Two different ids may share a hash, which is no error."""
    first_id, second_id = (read_row_id(chunk, offset, context) for chunk, offset in places)
    if first_id == second_id:
        files = " and ".join(dict.fromkeys(chunk.file.url for chunk, _ in places))
        raise JobError(
            f"id {first_id!r} appears twice with different questions in {files}; "
            "input.id must name a column that is unique, or be left out"
        )


def read_row_id(chunk: Chunk, offset: int, context: RunContext) -> str:
    whole_chunk = replace(chunk, excluded_offsets=(), answered_offsets=())
    return read_chunk_rows(whole_chunk, RowReader(context.job, chunk.file, context.schema_prompt))[offset].id
