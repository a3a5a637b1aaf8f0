"""Manifest URLs -> files -> chunks of consecutive rows, each under a key that is a hash of its rows.

The chunk is the unit of transport, retry and commit. Who plans reads only the columns that decide the
question; who works on a chunk reads its rows again. Nothing here holds more than one chunk of rows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.errors import JobError, StoppedError
from pipeline.job.spec import Job
from pipeline.manifest.files import SOURCE_BY_ENDING, ManifestFile
from pipeline.manifest.items import ManifestColumns, select_columns
from pipeline.manifest.sources import Source, Span
from pipeline.types import RetryHistory

SOURCE_BY_ENDING |= {".csv": "csv", ".tsv": "csv", ".csv.gz": "csv"}
TARGET_CHUNK_BYTES = 256 * 2**20  # what a prepared chunk may weigh in the object store, about
TYPICAL_IMAGE_PIXELS = 1280 * 28 * 28
TYPICAL_VIDEO_PIXELS = 20480 * 28 * 28
encode_canonical_json = json.JSONEncoder(sort_keys=True, default=str, ensure_ascii=False).encode


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive rows of one file. Its name says which of them are its to answer, and nothing else does.

    Those that failed are asked again as generation 1, 2, ... of the same name, each an object of its own.
    """

    file: ManifestFile
    span: Span
    rows_hash: str  # of all rows of the span
    row_count: int
    excluded_offsets: tuple[int, ...] = ()  # offsets of rows that are not its own: asked before, or beyond a limit
    answered_offsets: tuple[int, ...] = ()  # offsets of rows that were answered under another name
    generation: int = 0
    retry_histories: tuple[tuple[str, RetryHistory], ...] = ()  # the ids of a later generation

    @property
    def name(self) -> str:
        return (
            hash_to_hex(f"{self.rows_hash}{self.excluded_offsets}".encode())
            if self.excluded_offsets
            else self.rows_hash
        )

    @property
    def part_name(self) -> str:
        """The object that its answers become."""
        return f"{self.name}.g{self.generation}" if self.generation else self.name

    @property
    def asked_row_count(self) -> int:
        return (
            len(self.retry_histories)
            if self.generation
            else self.row_count - len({*self.excluded_offsets, *self.answered_offsets})
        )


def compute_chunk_rows(job: Job) -> int:
    """How many rows weigh about 256 MiB prepared; from the settings alone, so that every run cuts alike."""
    if job.output.chunk_rows:
        return job.output.chunk_rows
    if "video" in job.media.model_fields_set:
        row = 3 * (job.media.video.total_pixels or TYPICAL_VIDEO_PIXELS)
    else:
        row = 3 * (job.media.max_pixels or TYPICAL_IMAGE_PIXELS)
    return max(4, min(256, TARGET_CHUNK_BYTES // (row * max(1, len(job.input.media)))))


def split_file(job: Job, file: ManifestFile, schema_prompt: str | None) -> Iterator[tuple[Chunk, NDArray[np.uint64]]]:
    """The chunks of a file, each with three hashes a row: of the id, and two halves of (id, question)."""
    source = file.open_source()
    schema = source.read_schema()
    wanted = select_file_columns(job, file, schema, schema_prompt)
    needed = list(dict.fromkeys([*wanted.question_columns, *([wanted.id] if wanted.id else [])]))
    plain = [name for name in needed if name not in wanted.media or not has_bytes(schema.field(name).type)]
    for span in source.list_spans(compute_chunk_rows(job)):
        hashes = hash_row_keys(compute_row_keys(source.read_span(span, plain), wanted, file))
        yield Chunk(file, span, hash_rows(hashes), len(hashes)), hashes


def select_file_columns(job: Job, file: ManifestFile, schema: pa.Schema, schema_prompt: str | None) -> ManifestColumns:
    """Which columns matter, or an error that names the file and the column that is not there."""
    given = job
    if file.kind == "folder" and not job.input.media:
        given = job.model_copy(
            update={"input": job.input.model_copy(update={"media": ("uri",), "id": job.input.id or "path"})}
        )
    try:
        wanted = select_columns(given, schema.names, schema_prompt=schema_prompt)
    except JobError as error:
        raise JobError(f"{file.url}: {error}") from error
    bare = [name for name in wanted.media if has_bytes(schema.field(name).type)]
    if bare and not wanted.id:
        raise JobError(f"{file.url}: column {bare[0]} holds bytes, so rows need names: set input.id to a column")
    return wanted


def has_bytes(data_type: pa.DataType) -> bool:
    """Bytes, a struct with bytes (as Hugging Face's datasets write pictures), or a list of either."""
    if isinstance(data_type, pa.StructType):
        return any(has_bytes(field.type) for field in data_type)
    if isinstance(data_type, (pa.ListType, pa.LargeListType, pa.FixedSizeListType)):
        return has_bytes(data_type.value_type)
    return bool(pa.types.is_binary(data_type) or pa.types.is_large_binary(data_type))


def compute_row_keys(table: pa.Table, columns: ManifestColumns, file: ManifestFile) -> list[tuple[str, str]]:
    """(id, question) of each row. A question is a hash of what the row asks; without an id column it is the id too.

    Media given as bytes are not hashed: planning would have to read all of them. The row's id stands for them.
    """
    asked = [name for name in columns.question_columns if name in table.column_names]
    rows = to_python_rows(table.select(asked), file) if asked else [{}] * table.num_rows
    questions = [hash_text(encode_canonical_json(row)).hex() for row in rows]
    if not columns.id:
        return [(question, question) for question in questions]
    ids = [row[columns.id] for row in to_python_rows(table.select([columns.id]), file)]
    if None in ids:
        at = ids.index(None)
        where = f"in the row after {ids[at - 1]!r}" if at else "in a row"
        raise JobError(f"{file.url}: column {columns.id} (input.id) is empty {where}; name it, or leave input.id out")
    return [(str(name), question) for name, question in zip(ids, questions, strict=True)]


def to_python_rows(table: pa.Table, file: ManifestFile) -> list[dict[str, Any]]:
    """Its rows. Parquet is not always what it says: text may be no UTF-8, a date beyond the year 9999."""
    try:
        rows: list[dict[str, Any]] = table.to_pylist()
    except (UnicodeDecodeError, OverflowError, ValueError) as error:
        columns = ", ".join(table.column_names)
        raise JobError(f"{file.url}: a value of {columns} cannot be read ({error}); write it anew") from error
    return rows


def hash_text(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def hash_to_hex(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=12).hexdigest()


def hash_row_keys(row_keys: Sequence[tuple[str, str]]) -> NDArray[np.uint64]:
    """Three hashes a row: of the id, and two halves of (id, question)."""
    digests = (hash_text(row_id)[:8] + hash_text(f"{row_id}\0{question}") for row_id, question in row_keys)
    return np.frombuffer(b"".join(digests), np.uint64).reshape(-1, 3)


def hash_rows(hashes: NDArray[np.uint64]) -> str:
    return hash_to_hex(hashes[:, 1:].tobytes())


def build_kept_schema(schema: pa.Schema, job: Job) -> pa.Schema:
    """The manifest's own types of the columns that go to the output."""
    return pa.schema([schema.field(name).with_nullable(True) for name in job.input.keep])


def check_kept_values(file: ManifestFile, rows: Sequence[Mapping[str, Any]], kept_schema: pa.Schema) -> None:
    """Before anything is paid for: the types of kept columns are those of the manifest's first file."""
    for field in kept_schema:
        try:
            pa.array([row[field.name] for row in rows], field.type)
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
            what = f"column {field.name} (input.keep) is {field.type} in the first file of the manifest, not here"
            raise JobError(f"{file.url}: {what}: {error}; give it one type in all files") from error


def read_chunk_rows(
    chunk: Chunk, job: Job, schema_prompt: str | None, source: Source | None = None
) -> tuple[ManifestColumns, list[tuple[Mapping[str, Any], str, str]]]:
    """The rows of a chunk that are to be asked: (row, id, question). A source kept open reads on where it stands."""
    source = source or chunk.file.open_source()
    schema = source.read_schema()
    wanted = select_file_columns(job, chunk.file, schema, schema_prompt)
    needed: Sequence[str] = list(
        dict.fromkeys([*wanted.question_columns, *wanted.kept, *([wanted.id] if wanted.id else [])])
    )
    table = source.read_span(chunk.span, needed)
    plain = [name for name in needed if name not in wanted.media or not has_bytes(schema.field(name).type)]
    named = compute_row_keys(table.select(plain), wanted, chunk.file)
    if hash_rows(hash_row_keys(named)) != chunk.rows_hash:
        raise StoppedError(f"{chunk.file.url} was changed during the run; run the same command again to go on with it")
    left_out, again = {*chunk.excluded_offsets, *chunk.answered_offsets}, dict(chunk.retry_histories)
    return wanted, [
        (row, *pair)
        for offset, (row, pair) in enumerate(zip(to_python_rows(table, chunk.file), named, strict=True))
        if offset not in left_out and (not chunk.generation or pair[0] in again)
    ]
