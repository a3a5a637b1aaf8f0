"""A CSV file -> rows, every cell the text that stands in it: 007 is a name, not a number. An empty cell is no value.

Read whole by whoever opens it: what has millions of rows is better kept as Parquet. The header tells the separator.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from functools import cached_property

import fsspec
import pyarrow as pa
import pyarrow.csv

from pipeline.errors import JobError
from pipeline.manifest.sources import Span


class CsvSource:
    def __init__(self, url: str):
        self.url = url

    @cached_property
    def table(self) -> pa.Table:
        try:
            with fsspec.open(self.url, "rb", compression="infer") as file:
                head = file.readline().decode("utf-8-sig")
                separator = max(",;\t", key=head.count)
                names = next(csv.reader([head], delimiter=separator), [])
                file.seek(0)
                return pyarrow.csv.read_csv(
                    file,
                    read_options=pyarrow.csv.ReadOptions(use_threads=False),  # or errors would not name their row
                    parse_options=pyarrow.csv.ParseOptions(delimiter=separator, newlines_in_values=True),
                    convert_options=pyarrow.csv.ConvertOptions(
                        column_types=dict.fromkeys(names, pa.string()),
                        null_values=[""],
                        strings_can_be_null=True,
                        quoted_strings_can_be_null=False,
                    ),
                )
        except (pa.ArrowInvalid, UnicodeDecodeError) as error:
            raise JobError(f"{self.url}: is not CSV in UTF-8 ({error})") from error

    def read_schema(self) -> pa.Schema:
        return self.table.schema

    def list_spans(self, rows_per_span: int) -> Iterator[Span]:
        for start in range(0, self.table.num_rows, rows_per_span):
            yield start, min(start + rows_per_span, self.table.num_rows)

    def read_span(self, span: Span, columns: Sequence[str] | None = None) -> pa.Table:
        rows = self.table.slice(span[0], span[1] - span[0])
        return rows if columns is None else rows.select(list(columns))
