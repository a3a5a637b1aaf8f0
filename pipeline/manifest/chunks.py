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
from pipeline.manifest.files import KINDS, File
from pipeline.manifest.items import Columns, columns
from pipeline.manifest.sources import Source, Span
from pipeline.types import Past

KINDS |= {".csv": "csv", ".tsv": "csv", ".csv.gz": "csv"}
PREPARED_BYTES = 256 * 2**20  # what a prepared chunk may weigh in the object store, about
TYPICAL_PIXELS = 1280 * 28 * 28
TYPICAL_VIDEO_PIXELS = 20480 * 28 * 28
canonical = json.JSONEncoder(sort_keys=True, default=str, ensure_ascii=False).encode


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive rows of one file. Its name says which of them are its to answer, and nothing else does.

    Those that failed are asked again as generation 1, 2, ... of the same name, each an object of its own.
    """

    file: File
    span: Span
    key: str  # of all rows of the span
    rows: int
    without: tuple[int, ...] = ()  # offsets of rows that are not its own: asked before, or beyond a limit
    skip: tuple[int, ...] = ()  # offsets of rows that were answered under another name
    generation: int = 0
    again: tuple[tuple[str, Past], ...] = ()  # the ids of a later generation

    @property
    def name(self) -> str:
        return hexdigest(f"{self.key}{self.without}".encode()) if self.without else self.key

    @property
    def part(self) -> str:
        """The object that its answers become."""
        return f"{self.name}.g{self.generation}" if self.generation else self.name

    @property
    def asked(self) -> int:
        return len(self.again) if self.generation else self.rows - len({*self.without, *self.skip})


def chunk_rows(job: Job) -> int:
    """How many rows weigh about 256 MiB prepared; from the settings alone, so that every run cuts alike."""
    if job.output.chunk_rows:
        return job.output.chunk_rows
    if "video" in job.media.model_fields_set:
        row = 3 * (job.media.video.total_pixels or TYPICAL_VIDEO_PIXELS)
    else:
        row = 3 * (job.media.max_pixels or TYPICAL_PIXELS)
    return max(4, min(256, PREPARED_BYTES // (row * max(1, len(job.input.media)))))


def cut(job: Job, file: File, default_user: str | None) -> Iterator[tuple[Chunk, NDArray[np.uint64]]]:
    """The chunks of a file, each with three hashes a row: of the id, and two halves of (id, question)."""
    source = file.open()
    schema = source.schema()
    wanted = columns_of(job, file, schema, default_user)
    needed = list(dict.fromkeys([*wanted.asked, *([wanted.id] if wanted.id else [])]))
    plain = [name for name in needed if name not in wanted.media or not holds_bytes(schema.field(name).type)]
    for span in source.spans(chunk_rows(job)):
        hashes = hashes_of(names(source.read(span, plain), wanted, file))
        yield Chunk(file, span, key_of(hashes), len(hashes)), hashes


def columns_of(job: Job, file: File, schema: pa.Schema, default_user: str | None) -> Columns:
    """Which columns matter, or an error that names the file and the column that is not there."""
    given = job
    if file.kind == "folder" and not job.input.media:
        given = job.model_copy(
            update={"input": job.input.model_copy(update={"media": ("uri",), "id": job.input.id or "path"})}
        )
    try:
        wanted = columns(given, schema.names, default_user=default_user)
    except JobError as error:
        raise JobError(f"{file.url}: {error}") from error
    bare = [name for name in wanted.media if holds_bytes(schema.field(name).type)]
    if bare and not wanted.id:
        raise JobError(f"{file.url}: column {bare[0]} holds bytes, so rows need names: set input.id to a column")
    return wanted


def holds_bytes(kind: pa.DataType) -> bool:
    """Bytes, a struct with bytes (as Hugging Face's datasets write pictures), or a list of either."""
    if isinstance(kind, pa.StructType):
        return any(holds_bytes(field.type) for field in kind)
    if isinstance(kind, (pa.ListType, pa.LargeListType, pa.FixedSizeListType)):
        return holds_bytes(kind.value_type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def names(table: pa.Table, wanted: Columns, file: File) -> list[tuple[str, str]]:
    """(id, question) of each row. A question is a hash of what the row asks; without an id column it is the id too.

    Media given as bytes are not hashed: planning would have to read all of them. The row's id stands for them.
    """
    asked = [name for name in wanted.asked if name in table.column_names]
    rows = as_python(table.select(asked), file) if asked else [{}] * table.num_rows
    questions = [text_digest(canonical(row)).hex() for row in rows]
    if not wanted.id:
        return [(question, question) for question in questions]
    ids = [row[wanted.id] for row in as_python(table.select([wanted.id]), file)]
    if None in ids:
        at = ids.index(None)
        where = f"in the row after {ids[at - 1]!r}" if at else "in a row"
        raise JobError(f"{file.url}: column {wanted.id} (input.id) is empty {where}; name it, or leave input.id out")
    return [(str(name), question) for name, question in zip(ids, questions, strict=True)]


def as_python(table: pa.Table, file: File) -> list[dict[str, Any]]:
    """Its rows. Parquet is not always what it says: text may be no UTF-8, a date beyond the year 9999."""
    try:
        rows: list[dict[str, Any]] = table.to_pylist()
    except (UnicodeDecodeError, OverflowError, ValueError) as error:
        columns = ", ".join(table.column_names)
        raise JobError(f"{file.url}: a value of {columns} cannot be read ({error}); write it anew") from error
    return rows


def text_digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def hexdigest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=12).hexdigest()


def hashes_of(named: Sequence[tuple[str, str]]) -> NDArray[np.uint64]:
    """Three hashes a row: of the id, and two halves of (id, question)."""
    digests = (text_digest(row_id)[:8] + text_digest(f"{row_id}\0{question}") for row_id, question in named)
    return np.frombuffer(b"".join(digests), np.uint64).reshape(-1, 3)


def key_of(hashes: NDArray[np.uint64]) -> str:
    return hexdigest(hashes[:, 1:].tobytes())


def kept(schema: pa.Schema, job: Job) -> pa.Schema:
    """The manifest's own types of the columns that go to the output."""
    return pa.schema([schema.field(name).with_nullable(True) for name in job.input.keep])


def check_kept(file: File, rows: Sequence[Mapping[str, Any]], kept: pa.Schema) -> None:
    """Before anything is paid for: the types of kept columns are those of the manifest's first file."""
    for field in kept:
        try:
            pa.array([row[field.name] for row in rows], field.type)
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
            what = f"column {field.name} (input.keep) is {field.type} in the first file of the manifest, not here"
            raise JobError(f"{file.url}: {what}: {error}; give it one type in all files") from error


def rows_of(
    chunk: Chunk, job: Job, default_user: str | None, source: Source | None = None
) -> tuple[Columns, list[tuple[Mapping[str, Any], str, str]]]:
    """The rows of a chunk that are to be asked: (row, id, question). A source kept open reads on where it stands."""
    source = source or chunk.file.open()
    schema = source.schema()
    wanted = columns_of(job, chunk.file, schema, default_user)
    needed: Sequence[str] = list(dict.fromkeys([*wanted.asked, *wanted.keep, *([wanted.id] if wanted.id else [])]))
    table = source.read(chunk.span, needed)
    plain = [name for name in needed if name not in wanted.media or not holds_bytes(schema.field(name).type)]
    named = names(table.select(plain), wanted, chunk.file)
    if key_of(hashes_of(named)) != chunk.key:
        raise StoppedError(f"{chunk.file.url} was changed during the run; run the same command again to go on with it")
    left_out, again = {*chunk.without, *chunk.skip}, dict(chunk.again)
    return wanted, [
        (row, *pair)
        for offset, (row, pair) in enumerate(zip(as_python(table, chunk.file), named, strict=True))
        if offset not in left_out and (not chunk.generation or pair[0] in again)
    ]
