"""Reads the media that a manifest holds as bytes or as data URIs, for exports that carry media."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.context import RunContext
from pipeline.manifest.chunks import Chunk, read_span_again
from pipeline.manifest.files import read_with_retries
from pipeline.manifest.media_cells import CellError, parse_media_cell
from pipeline.manifest.row_reader import ManifestRow, RowReader

INLINE_STARTS = ("(", "data:")  # of the URIs that rows have for such media
InlineMedia = Mapping[str, Sequence[str | bytes]]  # the sources of each row's media, by its id


class InlineMediaReader:
    """Chunks that are read in order are read forward."""

    def __init__(self, context: RunContext):
        self.context = context
        self.reader: RowReader | None = None

    def read_chunk(self, chunk: Chunk) -> InlineMedia:
        return read_with_retries(chunk.file, lambda: self._read_chunk(chunk))

    def _read_chunk(self, chunk: Chunk) -> InlineMedia:
        reader, self.reader = self.reader, None  # after an error it is not used again
        if reader is None or reader.file != chunk.file:
            reader = RowReader(self.context.job, chunk.file, self.context.schema_prompt)
        rows = read_span_again(chunk, reader)
        self.reader = reader
        return {row.id: list_sources(row, reader) for row in rows}


def list_sources(row: ManifestRow, reader: RowReader) -> list[str | bytes]:
    """Empty for a malformed row, which has no answer."""
    try:
        cells = [parse_media_cell(row.values.get(name), reader.file.base_folder, name) for name in reader.columns.media]
    except CellError:
        return []
    sources = [media_ref.source for cell in cells for media_ref in cell if media_ref]
    return [source for source in sources if not isinstance(source, tuple)]


def has_inline_media(table: pa.Table) -> bool:
    uris = pc.struct_field(pc.list_flatten(table["media"]), ["uri"])
    return any(bool(pc.any(pc.starts_with(uris, pattern=start)).as_py()) for start in INLINE_STARTS)
