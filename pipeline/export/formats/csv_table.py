"""The format `csv`: UTF-8 with a header line, and one column for each value of an answer.

`answer.total` is a column; lists are JSON text in one cell. An empty cell is null, and "" is empty text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.csv

from pipeline.export.base import ExportTask
from pipeline.export.plain_values import flatten_table
from pipeline.export.split_files import SplitFiles, name_in_split, split_table


class CsvExporter:
    can_partition, can_split, media_choices = False, True, ()

    def __init__(self, task: ExportTask):
        self.task, self.columns = task, flatten_table(task.columns.empty_table()).schema

    def write_group(self, name: str, tables: Iterable[pa.Table]) -> list[str]:
        with SplitFiles(self.task.target, lambda split: name_in_split(split, f"{name}.csv"), self.open_file) as files:
            for table in tables:
                for split, rows in split_table(table, self.task.options.splits):
                    files.get_writer(split).write_table(flatten_table(rows).cast(self.columns))
            return files.upload()

    def open_file(self, path: Path) -> pyarrow.csv.CSVWriter:
        return pyarrow.csv.CSVWriter(path, self.columns)

    def finish(self, files: Sequence[str]) -> None:
        """Lines need nothing beside their files."""
