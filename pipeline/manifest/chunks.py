"""Cut manifest files into chunks of consecutive rows, each named after a hash of its rows.

The chunk is the unit of retry and commit. A large one travels in slices, which say nothing about its name: two runs may
slice the same chunk differently. Nothing here holds more than one chunk of rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from itertools import accumulate, chain, islice
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.errors import StoppedError
from pipeline.fetch.versions import VersionReader
from pipeline.job.spec import Job
from pipeline.manifest.files import ManifestFile
from pipeline.manifest.row_keys import hash_row_keys, hash_rows, hash_to_hex
from pipeline.manifest.row_reader import ManifestRow, RowReader
from pipeline.manifest.row_versions import digest_row_versions
from pipeline.manifest.sources.base import Span
from pipeline.types import RetryHistory

TARGET_CHUNK_BYTES = 256 * 2**20  # of a prepared chunk in the object store, roughly
TYPICAL_IMAGE_PIXELS = 1280 * 28 * 28
TYPICAL_VIDEO_PIXELS = 20480 * 28 * 28
VERSION_BATCH_ROWS = 256  # whose versions are read at once


class Slice(NamedTuple):
    """Consecutive rows of a chunk that travel together."""

    span: Span
    rows_hash: str
    row_count: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive rows of one file. The name depends only on which rows the chunk must answer.

    Failed rows are asked again as generation 1, 2, ... of the same name; each generation is an object of its own.
    """

    file: ManifestFile
    span: Span
    rows_hash: str  # of all rows of the span
    row_count: int
    version_digests: tuple[bytes, ...] = ()  # of the media of each row, where input.version asks for versions
    excluded_offsets: tuple[int, ...] = ()  # rows that repeat an earlier question or lie beyond --limit
    answered_offsets: tuple[int, ...] = ()  # rows that a chunk of another name has answered
    generation: int = 0
    retry_histories: tuple[tuple[str, RetryHistory], ...] = ()  # by id: the rows of a later generation
    slices: tuple[Slice, ...] = ()  # of all rows of the span; none: it travels whole

    @property
    def name(self) -> str:
        excluded = self.excluded_offsets
        return hash_to_hex(f"{self.rows_hash}{excluded}".encode()) if excluded else self.rows_hash

    @property
    def part_name(self) -> str:
        """The name of the object with the answers."""
        return f"{self.name}.g{self.generation}" if self.generation else self.name

    @property
    def skipped_offsets(self) -> set[int]:
        return {*self.excluded_offsets, *self.answered_offsets}

    @property
    def asked_row_count(self) -> int:
        return len(self.retry_histories) if self.generation else self.row_count - len(self.skipped_offsets)

    def cut(self, slice_rows: int) -> list[Chunk]:
        """What its slices ask, each as a chunk that can be read by itself. A retry reads the whole span for each."""
        if self.generation:
            histories = self.retry_histories
            firsts = range(0, len(histories), slice_rows)
            return [replace(self, retry_histories=histories[first : first + slice_rows]) for first in firsts]
        if not self.slices:
            return [self]
        starts = accumulate((own.row_count for own in self.slices[:-1]), initial=0)
        chunks = [self._select_slice(own, start) for own, start in zip(self.slices, starts, strict=True)]
        return [chunk for chunk in chunks if chunk.asked_row_count]

    def _select_slice(self, own: Slice, start: int) -> Chunk:
        def select(offsets: Iterable[int]) -> tuple[int, ...]:
            return tuple(offset - start for offset in offsets if 0 <= offset - start < own.row_count)

        return replace(
            self,
            span=own.span,
            rows_hash=own.rows_hash,
            row_count=own.row_count,
            version_digests=self.version_digests[start : start + own.row_count],
            excluded_offsets=select(self.excluded_offsets),
            answered_offsets=select(self.answered_offsets),
            slices=(),
        )


def compute_chunk_rows(job: Job) -> int:
    """The rows of a chunk. Only settings count, so every run cuts the same chunks."""
    return job.output.chunk_rows or compute_light_rows(job)


def compute_slice_rows(job: Job) -> int:
    """The rows that travel together: all of a chunk, unless slices divide it evenly."""
    chunk_rows, slice_rows = compute_chunk_rows(job), job.output.slice_rows
    return slice_rows if slice_rows and chunk_rows % slice_rows == 0 else chunk_rows


def compute_light_rows(job: Job) -> int:
    """The rows that weigh about 256 MiB when they are prepared, by the settings of media."""
    if "video" in job.media.model_fields_set:
        pixels = job.media.video.total_pixels or TYPICAL_VIDEO_PIXELS
    else:
        pixels = job.media.max_pixels or TYPICAL_IMAGE_PIXELS
    return max(4, min(256, TARGET_CHUNK_BYTES // (3 * pixels * max(1, len(job.input.media)))))


def split_file(job: Job, file: ManifestFile, schema_prompt: str | None) -> Iterator[tuple[Chunk, NDArray[np.uint64]]]:
    yield from split_open_file(job, RowReader(job, file, schema_prompt))


def split_open_file(job: Job, reader: RowReader) -> Iterator[tuple[Chunk, NDArray[np.uint64]]]:
    with ExitStack() as stack:
        version_reader = None
        if job.input.version != "none":
            known_versions = reader.source.list_versions(job.input.version)
            version_reader = stack.enter_context(closing(VersionReader(job, known_versions)))
        slice_rows = compute_slice_rows(job)
        slices = hash_slices(reader, slice_rows, version_reader)
        while group := list(islice(slices, compute_chunk_rows(job) // slice_rows)):
            yield join_slices(reader.file, group)


HashedSlice = tuple[Slice, NDArray[np.uint64], tuple[bytes, ...]]  # with the key hashes and version digests of its rows


def hash_slices(reader: RowReader, slice_rows: int, version_reader: VersionReader | None) -> Iterator[HashedSlice]:
    spans = reader.source.list_spans(slice_rows)
    while batch := list(islice(spans, max(1, VERSION_BATCH_ROWS // slice_rows) if version_reader else 1)):
        tables = [reader.read_key_columns(span) for span in batch]
        digests = iter(plan_versions(reader, tables, version_reader) if version_reader else ())
        for span, table in zip(batch, tables, strict=True):
            own_digests = tuple(islice(digests, table.num_rows))
            key_hashes = hash_row_keys(reader.compute_keys(table, own_digests))
            yield Slice(span, hash_rows(key_hashes), len(key_hashes)), key_hashes, own_digests


def join_slices(file: ManifestFile, group: Sequence[HashedSlice]) -> tuple[Chunk, NDArray[np.uint64]]:
    slices, hashes, digests = zip(*group, strict=True)
    if len(group) == 1:
        ((span, rows_hash, row_count),) = slices
        return Chunk(file, span, rows_hash, row_count, *digests), hashes[0]
    key_hashes = np.concatenate(hashes)
    span = slices[0].span[0], slices[-1].span[1]
    chunk = Chunk(file, span, hash_rows(key_hashes), len(key_hashes), tuple(chain(*digests)), slices=slices)
    return chunk, key_hashes


def plan_versions(reader: RowReader, tables: Sequence[pa.Table], version_reader: VersionReader) -> list[bytes]:
    """A digest for each row of the tables."""
    rows = (row for table in tables for row in reader.read_asked_values(table))
    return digest_row_versions([reader.list_uris(row, reader.file.base_folder) for row in rows], version_reader)


def read_chunk_rows(chunk: Chunk, reader: RowReader) -> list[ManifestRow]:
    """The rows that the chunk asks, read again and compared with what planning saw."""
    rows = read_span_again(chunk, reader)
    skipped_offsets, retried_ids = chunk.skipped_offsets, dict(chunk.retry_histories)
    return [
        row
        for offset, row in enumerate(rows)
        if offset not in skipped_offsets and (row.id in retried_ids or not chunk.generation)
    ]


def read_span_again(chunk: Chunk, reader: RowReader, *, with_binary_media: bool = True) -> list[ManifestRow]:
    """All rows of the chunk's span, compared with what planning saw."""
    rows = reader.read_rows(chunk.span, with_binary_media=with_binary_media, version_digests=chunk.version_digests)
    if hash_rows(hash_row_keys([(row.id, row.question) for row in rows])) != chunk.rows_hash:
        raise StoppedError(f"{chunk.file.url} was changed during the run; run the same command again to go on")
    return rows
