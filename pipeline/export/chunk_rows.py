"""Reads the ids and the kept values of chunks from today's manifest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from pipeline.context import RunContext
from pipeline.errors import ReadError
from pipeline.manifest.chunks import Chunk, read_span_again
from pipeline.manifest.files import read_with_retries
from pipeline.manifest.kept_columns import convert_kept_rows
from pipeline.manifest.row_reader import RowReader


class ChunkRow(NamedTuple):
    id: str
    question: str
    kept_values: Mapping[str, Any]
    misfit: str = ""  # why there are none: a value that is not of its column's type, which a run makes an error row


class ChunkRowReader:
    """Chunks that are read in order are read forward, so that each row of a file is decoded once."""

    def __init__(self, context: RunContext):
        self.context = context
        self.reader: RowReader | None = None

    def read_rows(self, chunk: Chunk) -> list[ChunkRow]:
        """All rows of the chunk's span."""
        return read_with_retries(chunk.file, lambda: self._read_rows(chunk))

    def _read_rows(self, chunk: Chunk) -> list[ChunkRow]:
        reader, self.reader = self.reader, None  # after an error it is not used again
        if reader is None or reader.file != chunk.file:
            reader = RowReader(self.context.job, chunk.file, self.context.schema_prompt)
        rows = read_span_again(chunk, reader, with_binary_media=False)
        self.reader = reader
        kept_rows = convert_kept_rows(chunk.file, [row.values for row in rows], self.context.kept_schema)
        return [
            ChunkRow(row.id, row.question, {}, kept.message)
            if isinstance(kept, ReadError)
            else ChunkRow(row.id, row.question, kept)
            for row, kept in zip(rows, kept_rows, strict=True)
        ]
