"""Cut manifest files into chunks of consecutive rows, each named after a hash of its rows.

The chunk is the unit of transport, retry and commit. Nothing here holds more than one chunk of rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import islice

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


def compute_chunk_rows(job: Job) -> int:
    """The number of rows that weigh about 256 MiB prepared. Only settings count, so every run cuts the same chunks."""
    if job.output.chunk_rows:
        return job.output.chunk_rows
    if "video" in job.media.model_fields_set:
        pixels = job.media.video.total_pixels or TYPICAL_VIDEO_PIXELS
    else:
        pixels = job.media.max_pixels or TYPICAL_IMAGE_PIXELS
    return max(4, min(256, TARGET_CHUNK_BYTES // (3 * pixels * max(1, len(job.input.media)))))


def split_file(job: Job, file: ManifestFile, schema_prompt: str | None) -> Iterator[tuple[Chunk, NDArray[np.uint64]]]:
    reader = RowReader(job, file, schema_prompt)
    with ExitStack() as stack:
        version_reader = None
        if job.input.version != "none":
            known_versions = reader.source.list_versions(job.input.version)
            version_reader = stack.enter_context(closing(VersionReader(job, known_versions)))
        chunk_rows = compute_chunk_rows(job)
        spans = reader.source.list_spans(chunk_rows)
        while batch := list(islice(spans, max(1, VERSION_BATCH_ROWS // chunk_rows) if version_reader else 1)):
            tables = [reader.read_key_columns(span) for span in batch]
            digests = iter(plan_versions(reader, tables, version_reader) if version_reader else ())
            for span, table in zip(batch, tables, strict=True):
                own_digests = tuple(islice(digests, table.num_rows))
                key_hashes = hash_row_keys(reader.compute_keys(table, own_digests))
                yield Chunk(file, span, hash_rows(key_hashes), len(key_hashes), own_digests), key_hashes


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
