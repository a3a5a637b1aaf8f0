"""A Parquet file -> spans of row numbers -> rows. Only the row groups and columns asked for are read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import JobError
from pipeline.intake.sources import Span


class Parquet:
    def __init__(self, url: str):
        self.url = url

    @cached_property
    def footer(self) -> pq.FileMetaData:
        try:
            with fsspec.open(self.url, "rb") as file:
                return pq.read_metadata(file)
        except pa.ArrowInvalid as error:
            raise JobError(f"{self.url}: is not a Parquet file ({error})") from error

    def schema(self) -> pa.Schema:
        return self.footer.schema.to_arrow_schema().remove_metadata()

    def spans(self, rows: int) -> Iterator[Span]:
        for start in range(0, self.footer.num_rows, rows):
            yield start, min(start + rows, self.footer.num_rows)

    def read(self, span: Span, columns: Sequence[str] | None = None) -> pa.Table:
        start, stop = span
        groups: list[int] = []
        first = before = 0
        for group in range(self.footer.num_row_groups):
            after = before + self.footer.row_group(group).num_rows
            if before < stop and after > start:
                if not groups:
                    first = before
                groups.append(group)
            before = after
        with fsspec.open(self.url, "rb") as file:
            table = pq.ParquetFile(file, metadata=self.footer).read_row_groups(groups, columns=columns)
        return table.slice(start - first, stop - start).replace_schema_metadata(None)
