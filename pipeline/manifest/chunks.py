"""Cut manifest files into chunks of consecutive rows, each named after a hash of its rows.

The chunk is the unit of transport, retry and commit. Planning reads only the columns that decide the question; the
worker that gets a chunk reads its rows again. Nothing here holds more than one chunk of rows. A row's key is its id and
a hash of its question. Media given as bytes are not part of the hash, because planning would have to read all of them:
the id of the row stands for them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.errors import JobError, StoppedError
from pipeline.job.spec import Job
from pipeline.manifest.column_selection import holds_bytes, select_file_columns
from pipeline.manifest.files import ManifestFile
from pipeline.manifest.nested_columns import add_nested_columns, add_nested_fields, list_root_columns
from pipeline.manifest.sources.base import Span
from pipeline.types import RetryHistory

TARGET_CHUNK_BYTES = 256 * 2**20  # of a prepared chunk in the object store, roughly
TYPICAL_IMAGE_PIXELS = 1280 * 28 * 28
TYPICAL_VIDEO_PIXELS = 20480 * 28 * 28
encode_canonical_json = json.JSONEncoder(sort_keys=True, default=str, ensure_ascii=False).encode


class ManifestRow(NamedTuple):
    values: Mapping[str, Any]
    id: str
    question: str  # a hash of what the row asks


class RowReader:
    """One manifest file, open. A caller that reads spans in order decodes each row once."""

    def __init__(self, job: Job, file: ManifestFile, schema_prompt: str | None):
        self.file, self.source = file, file.open_source()
        file_schema = self.source.read_schema()
        self.file_columns = file_schema.names
        self.columns = select_file_columns(job, file, file_schema, schema_prompt)
        schema = add_nested_fields(file_schema, self.columns.media)
        binary = {name for name in self.columns.media if holds_bytes(schema.field(name).type)}
        self.hashed_columns = [name for name in self.columns.question_columns if name not in binary]
        self.id_columns = [self.columns.id] if self.columns.id else []
        # Where values may turn out to have another type than the file began with, planning finds it, not a paid run.
        self.checked_columns = self.columns.kept if self.source.infers_types else ()

    def read_keys(self, span: Span) -> list[tuple[str, str]]:
        """(id, question) of each row, without reading media given as bytes."""
        names = dict.fromkeys([*self.hashed_columns, *self.id_columns, *self.checked_columns])
        return self._compute_keys(self._read_span(span, names))

    def read_rows(self, span: Span, *, with_binary_media: bool = True) -> list[ManifestRow]:
        asked = self.columns.question_columns if with_binary_media else self.hashed_columns
        names = dict.fromkeys([*asked, *self.columns.kept, *self.id_columns])
        table = self._read_span(span, names)
        keys, rows = self._compute_keys(table), to_python_rows(table, self.file.url)
        return [ManifestRow(row, *key) for row, key in zip(rows, keys, strict=True)]

    def _read_span(self, span: Span, names: Iterable[str]) -> pa.Table:
        table = self.source.read_span(span, list_root_columns(names, self.file_columns))
        return add_nested_columns(table, names, self.file.url)

    def _compute_keys(self, table: pa.Table) -> list[tuple[str, str]]:
        return compute_row_keys(table, self.hashed_columns, self.columns.id, self.file.url)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive rows of one file. The name depends only on which rows the chunk must answer.

    Failed rows are asked again as generation 1, 2, ... of the same name; each generation is an object of its own.
    """

    file: ManifestFile
    span: Span
    rows_hash: str  # of all rows of the span
    row_count: int
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
    for span in reader.source.list_spans(compute_chunk_rows(job)):
        key_hashes = hash_row_keys(reader.read_keys(span))
        yield Chunk(file, span, hash_rows(key_hashes), len(key_hashes)), key_hashes


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
    rows = reader.read_rows(chunk.span, with_binary_media=with_binary_media)
    if hash_rows(hash_row_keys([(row.id, row.question) for row in rows])) != chunk.rows_hash:
        raise StoppedError(f"{chunk.file.url} was changed during the run; run the same command again to go on")
    return rows


def compute_row_keys(
    table: pa.Table, hashed_columns: Sequence[str], id_column: str | None, url: str
) -> list[tuple[str, str]]:
    """(id, question) of each row. Without an id column the question is the id, too."""
    rows = to_python_rows(table.select(hashed_columns), url) if hashed_columns else [{}] * table.num_rows
    questions = [hash_text(encode_canonical_json(row)).hex() for row in rows]
    if not id_column:
        return [(question, question) for question in questions]
    ids = [format_row_id(row[id_column]) for row in to_python_rows(table.select([id_column]), url)]
    if None in ids:
        row_number = ids.index(None)
        place = f"in the row after {ids[row_number - 1]!r}" if row_number else "in a row"
        raise JobError(f"{url}: column {id_column} (input.id) is empty {place}; fill it in, or leave input.id out")
    return [(row_id, question) for row_id, question in zip(ids, questions, strict=True) if row_id is not None]


def format_row_id(value: Any) -> str | None:
    """None for an empty cell. A column of whole numbers becomes floats in tables that write NaN for empty cells.

    >>> format_row_id(7), format_row_id(7.0), format_row_id(7.5), format_row_id(float("nan"))
    ('7', '7', '7.5', None)
    """
    if value is None or value != value:
        return None
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)


def to_python_rows(table: pa.Table, url: str) -> list[dict[str, Any]]:
    """Parquet does not check its values: text may not be UTF-8, and a date may lie beyond the year 9999."""
    try:
        return list(table.to_pylist())
    except (UnicodeDecodeError, OverflowError, ValueError) as error:
        columns = ", ".join(table.column_names)
        raise JobError(f"{url}: a value of {columns} cannot be read ({error}); write the file again") from error


def hash_text(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def hash_to_hex(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=12).hexdigest()


def hash_row_keys(row_keys: Sequence[tuple[str, str]]) -> NDArray[np.uint64]:
    """Three hashes for each row: one of the id, and two halves of one of (id, question)."""
    digests = (hash_text(row_id)[:8] + hash_text(f"{row_id}\0{question}") for row_id, question in row_keys)
    return np.frombuffer(b"".join(digests), np.uint64).reshape(-1, 3)


def hash_rows(key_hashes: NDArray[np.uint64]) -> str:
    return hash_to_hex(key_hashes[:, 1:].tobytes())
