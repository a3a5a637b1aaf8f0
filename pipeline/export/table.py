"""The format `table`: one row for each answered row of the manifest, in large Parquet files and Hive folders."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pyarrow as pa

from pipeline.export.base import ExportTask
from pipeline.export.partitioned_files import PartitionedFileWriter, check_partition_columns


class TableExporter:
    def __init__(self, task: ExportTask):
        check_partition_columns(task.columns, task.options.partition_by)
        self.task = task

    def write_group(self, name: str, tables: Iterable[pa.Table]) -> list[str]:
        with PartitionedFileWriter(self.task.columns, self.task.options.partition_by) as writer:
            for table in tables:
                writer.add_table(table)
            writer.finish()
            local_files = {f"{folder}{name}.parquet": path for folder, path in writer.paths_by_partition.items()}
            for file, path in local_files.items():
                self.task.target.upload_file(file, path)
        return sorted(local_files)

    def finish(self, files: Sequence[str]) -> None:
        """A table needs nothing beside its files."""
