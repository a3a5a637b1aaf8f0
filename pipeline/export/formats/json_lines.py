"""The format `jsonl`: a line of JSON for each row, with the columns of the table.

Dates are text as ISO 8601 writes them, bytes are base64, and what JSON has no number for (NaN) is null.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

import pyarrow as pa

from pipeline.export.base import ExportTask
from pipeline.export.plain_values import encode_json, list_rows
from pipeline.export.split_files import SplitFiles, name_in_split, split_table


class JsonLinesExporter:
    can_partition, can_split, media_choices = False, True, ()

    def __init__(self, task: ExportTask):
        self.task = task

    def write_group(self, name: str, tables: Iterable[pa.Table]) -> list[str]:
        open_file = partial(open, mode="w", encoding="utf-8")
        with SplitFiles(self.task.target, lambda split: name_in_split(split, f"{name}.jsonl"), open_file) as files:
            for table in tables:
                for split, rows in split_table(table, self.task.options.splits):
                    files.get_writer(split).writelines(f"{encode_json(row)}\n" for row in list_rows(rows))
            return files.upload()

    def finish(self, files: Sequence[str]) -> None:
        """Lines need nothing beside their files."""
