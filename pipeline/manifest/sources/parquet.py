"""Parquet manifests, cut at row numbers. Only the row groups and columns asked for are read.

Chunks are far smaller than row groups, and a row group can only be decoded from its start. So the source keeps its
place: a caller that reads spans in order decodes each row once.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import accumulate
from typing import ClassVar

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import JobError
from pipeline.manifest.sources.base import Source, Span, split_rows

BATCH_BYTES = 8 * 2**20  # decoded at a time: a row may hold whole images
BATCH_ROWS = 8192
MAX_PREBUFFER_BYTES = 64 * 2**20  # row groups up to this size are fetched in one go


class ParquetSource(Source):
    file_endings: ClassVar[tuple[str, ...]] = (".parquet", ".pq")

    def __init__(self, url: str):
        super().__init__(url)
        self.columns: list[str] | None = None  # those that `batches` holds, of the open row group
        self.row_group = -1
        self.batches: Iterator[pa.RecordBatch] = iter(())
        self.batch: pa.RecordBatch | None = None
        self.batch_start = 0  # number of its first row

    @cached_property
    def footer(self) -> pq.FileMetaData:
        try:
            with fsspec.open(self.url, "rb") as file:
                return pq.read_metadata(file)
        except pa.ArrowInvalid as error:
            raise JobError(f"{self.url}: is not a Parquet file ({error})") from error

    @cached_property
    def row_group_starts(self) -> list[int]:
        """The first row of each row group, and the end."""
        groups = range(self.footer.num_row_groups)
        return [0, *accumulate(self.footer.row_group(group).num_rows for group in groups)]

    def read_schema(self) -> pa.Schema:
        return self.footer.schema.to_arrow_schema().remove_metadata()

    def list_spans(self, rows_per_span: int) -> Iterator[Span]:
        return split_rows(self.footer.num_rows, rows_per_span)

    def estimate_rows(self) -> int:
        count: int = self.footer.num_rows
        return count

    def read_span(self, span: Span, columns: Sequence[str] | None = None) -> pa.Table:
        start, end = span
        selected = None if columns is None else list(columns)
        row_group = bisect_right(self.row_group_starts, start) - 1
        if selected != self.columns or row_group != self.row_group or start < self.batch_start:
            self.open_row_group(row_group, selected)
        pieces = []
        while start < end:
            if self.batch is None:
                self.open_row_group(self.row_group + 1, selected)
            elif self.batch_start + self.batch.num_rows > start:
                pieces.append(self.batch.slice(start - self.batch_start, end - start))
                start += pieces[-1].num_rows
            else:
                self.batch_start += self.batch.num_rows
                self.batch = next(self.batches, None)
        return pa.Table.from_batches(pieces).replace_schema_metadata(None)

    def open_row_group(self, row_group: int, columns: list[str] | None) -> None:
        decoded_bytes = self.compute_decoded_bytes(row_group, columns)
        file = pq.ParquetFile(
            fsspec.open(self.url, "rb").open(),
            metadata=self.footer,
            pre_buffer=decoded_bytes <= MAX_PREBUFFER_BYTES,
            buffer_size=2**20,
        )
        batch_rows = BATCH_BYTES * self.footer.row_group(row_group).num_rows // max(decoded_bytes, 1)
        self.batches = file.iter_batches(max(1, min(BATCH_ROWS, batch_rows)), row_groups=[row_group], columns=columns)
        self.columns, self.row_group, self.batch_start = columns, row_group, self.row_group_starts[row_group]
        self.batch = next(self.batches, None)

    def compute_decoded_bytes(self, row_group: int, columns: list[str] | None) -> int:
        metadata = self.footer.row_group(row_group)
        column_chunks = (metadata.column(number) for number in range(metadata.num_columns))
        return sum(
            column_chunk.total_uncompressed_size
            for column_chunk in column_chunks
            if columns is None or column_chunk.path_in_schema.partition(".")[0] in columns
        )
