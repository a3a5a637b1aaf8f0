"""The format `table`: one row for each answered row of the manifest, in large Parquet files.

With --partition-by, every partition has its own file, in Hive folders such as `currency=EUR/`. The files are written on
this machine first and uploaded whole. Rows are buffered up to a limit, and a row group is what was buffered together,
so many partitions in random order make small row groups.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import quote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import OutputError
from pipeline.export.base import ExportTask

MAX_BUFFERED_ROWS = 2**16
MAX_PARTITIONS = 1000
NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"


class TableExporter:
    can_partition, can_split, media_choices = True, False, ()

    def __init__(self, task: ExportTask):
        self.task, self.partition_columns = task, task.options.partition_by
        check_partition_columns(task.columns, self.partition_columns)
        self.file_schema = pa.schema([field for field in task.columns if field.name not in self.partition_columns])

    def write_group(self, name: str, tables: Iterable[pa.Table]) -> list[str]:
        with tempfile.TemporaryDirectory(prefix="vlbatch-") as temp_folder:
            paths = self._write_local_files(Path(temp_folder), tables)
            files = {f"{folder}{name}.parquet": path for folder, path in paths.items()}
            for file, path in files.items():
                self.task.target.upload_file(file, path)
        return sorted(files)

    def finish(self, files: Sequence[str]) -> None:
        """A table needs nothing beside its files."""

    def _write_local_files(self, temp_folder: Path, tables: Iterable[pa.Table]) -> dict[str, Path]:
        """The file of each partition by its folder: "" or "currency=EUR/"."""
        paths: dict[str, Path] = {}
        writers: dict[str, pq.ParquetWriter] = {}
        with ExitStack() as open_writers:
            for folder, rows in self._split_tables(tables):
                if folder not in paths:
                    if len(paths) >= MAX_PARTITIONS:
                        columns = " ".join(self.partition_columns)
                        more = f"there are more than {MAX_PARTITIONS} values; take a column with fewer"
                        raise OutputError(f"--partition-by {columns}: {more}")
                    paths[folder] = temp_folder / f"{len(paths)}.parquet"
                    writer = pq.ParquetWriter(paths[folder], self.file_schema, compression="zstd")
                    writers[folder] = open_writers.enter_context(writer)
                writers[folder].write_table(rows.select(self.file_schema.names))
        return paths

    def _split_tables(self, tables: Iterable[pa.Table]) -> Iterator[tuple[str, pa.Table]]:
        for buffered_rows in buffer_rows(tables):
            yield from split_by_partition(buffered_rows, self.partition_columns)


def buffer_rows(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Concatenate tables until they have MAX_BUFFERED_ROWS."""
    buffered: list[pa.Table] = []
    row_count = 0
    for table in tables:
        buffered.append(table)
        row_count += table.num_rows
        if row_count >= MAX_BUFFERED_ROWS:
            yield pa.concat_tables(buffered)
            buffered, row_count = [], 0
    if row_count:
        yield pa.concat_tables(buffered)


def split_by_partition(table: pa.Table, partition_columns: Sequence[str]) -> Iterator[tuple[str, pa.Table]]:
    """Each partition's folder and its rows."""
    if not partition_columns:
        yield "", table
        return
    names = [f"c{number}" for number in range(len(partition_columns))]
    keys = pa.table([get_column_values(table, column) for column in partition_columns], names=names)
    for values in keys.group_by(names, use_threads=False).aggregate([]).to_pylist():
        mask = pa.scalar(True)
        for name, value in values.items():
            is_same = pc.is_null(keys[name]) if value is None else pc.fill_null(pc.equal(keys[name], value), False)
            mask = pc.and_(mask, is_same)
        folders = map(format_folder, partition_columns, values.values())
        yield "".join(folders), table.filter(mask)


def get_column_values(table: pa.Table, column: str) -> pa.ChunkedArray:
    """The values of a column, or of a field such as answer.currency."""
    first, *fields = column.split(".")
    return pc.struct_field(table[first], fields) if fields else table[first]


def format_folder(column: str, value: object) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return f"{quote(column)}={NULL_PARTITION if value is None or not text else quote(text, safe='')}/"


def check_partition_columns(schema: pa.Schema, partition_columns: Sequence[str]) -> None:
    """Refuse a column that does not exist or whose values cannot name folders."""
    for column in partition_columns:
        column_type = find_column_type(schema, column)
        if column_type is None:
            raise OutputError(f"--partition-by {column}: there is no such column; there are {', '.join(schema.names)}")
        kinds = pa.types
        checks = (kinds.is_string, kinds.is_large_string, kinds.is_integer, kinds.is_boolean, kinds.is_date)
        if not any(is_type(column_type) for is_type in checks):
            raise OutputError(
                f"--partition-by {column}: values of type {column_type} cannot name folders; "
                "text, whole numbers, booleans and dates can"
            )


def find_column_type(schema: pa.Schema, column: str) -> pa.DataType | None:
    struct = pa.struct(list(schema))
    for name in column.split("."):
        position = struct.get_field_index(name) if pa.types.is_struct(struct) else -1
        if position < 0:
            return None
        struct = struct.field(position).type
    return struct
