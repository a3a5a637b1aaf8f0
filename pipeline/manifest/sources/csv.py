"""CSV manifests. Every cell is text as written (007 is an id, not a number); an empty cell is null.

The file is read whole wherever it is opened, so a manifest of millions of rows is better kept as Parquet. The header
line decides between comma, semicolon and tab.
"""

from __future__ import annotations

import csv
from functools import cached_property

import fsspec
import pyarrow as pa
import pyarrow.csv

from pipeline.errors import JobError
from pipeline.manifest.sources.base import TableSource


class CsvSource(TableSource):
    file_endings = (".csv", ".tsv", ".csv.gz")
    infers_types = True
    is_found_in_folders = False  # a folder of media may hold a table of labels

    @cached_property
    def table(self) -> pa.Table:
        try:
            with fsspec.open(self.url, "rb", compression="infer") as file:
                header = file.readline().decode("utf-8-sig")
                separator = max(",;\t", key=header.count)
                names = next(csv.reader([header], delimiter=separator), [])
                file.seek(0)
                return pyarrow.csv.read_csv(
                    file,
                    read_options=pyarrow.csv.ReadOptions(use_threads=False),  # so that errors name their row
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
