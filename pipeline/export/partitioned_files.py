"""Writes tables into one large Parquet file for each partition, in Hive folders such as `currency=EUR/`.

The files are written on this machine first and uploaded whole. Rows are buffered up to a limit, and a row group is what
was buffered together, so many partitions in random order make small row groups.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import OutputError

MAX_BUFFERED_ROWS = 2**16
MAX_PARTITIONS = 1000
NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"
PARTITION_TYPE_CHECKS = (
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_integer,
    pa.types.is_boolean,
    pa.types.is_date,
)


class PartitionedFileWriter:
    """Open for one group of rows. After `finish`, `paths_by_partition` names the local files."""

    def __init__(self, schema: pa.Schema, partition_columns: Sequence[str]):
        self.partition_columns = partition_columns
        self.schema = pa.schema([field for field in schema if field.name not in partition_columns])
        self.temp_folder = tempfile.TemporaryDirectory(prefix="vlbatch-")
        self.paths_by_partition: dict[str, Path] = {}  # by folder: "" or "currency=EUR/"
        self.writers_by_partition: dict[str, pq.ParquetWriter] = {}
        self.buffered_tables: list[pa.Table] = []
        self.buffered_rows = 0

    def __enter__(self) -> PartitionedFileWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._close_writers()
        self.temp_folder.cleanup()

    def add_table(self, table: pa.Table) -> None:
        self.buffered_tables.append(table)
        self.buffered_rows += table.num_rows
        if self.buffered_rows >= MAX_BUFFERED_ROWS:
            self._flush()

    def finish(self) -> None:
        self._flush()
        self._close_writers()

    def _flush(self) -> None:
        if not self.buffered_rows:
            return
        for folder, rows in split_by_partition(pa.concat_tables(self.buffered_tables), self.partition_columns):
            self._get_writer(folder).write_table(rows.select(self.schema.names))
        self.buffered_tables, self.buffered_rows = [], 0

    def _get_writer(self, folder: str) -> pq.ParquetWriter:
        if folder not in self.writers_by_partition:
            number = len(self.writers_by_partition)
            if number >= MAX_PARTITIONS:
                columns = " ".join(self.partition_columns)
                raise OutputError(
                    f"--partition-by {columns}: there are more than {MAX_PARTITIONS} values; take a column with fewer"
                )
            path = self.paths_by_partition[folder] = Path(self.temp_folder.name) / f"{number}.parquet"
            self.writers_by_partition[folder] = pq.ParquetWriter(path, self.schema, compression="zstd")
        return self.writers_by_partition[folder]

    def _close_writers(self) -> None:
        for writer in self.writers_by_partition.values():
            writer.close()


def split_by_partition(table: pa.Table, partition_columns: Sequence[str]) -> Iterator[tuple[str, pa.Table]]:
    """Each partition's folder and its rows."""
    if not partition_columns:
        yield "", table
        return
    names = [f"c{number}" for number in range(len(partition_columns))]
    keys = pa.table([get_column_values(table, column) for column in partition_columns], names=names)
    for values in keys.group_by(names, use_threads=False).aggregate([]).to_pylist():
        mask = pa.scalar(True)
        for name in names:
            value = values[name]
            is_same = pc.is_null(keys[name]) if value is None else pc.fill_null(pc.equal(keys[name], value), False)
            mask = pc.and_(mask, is_same)
        folders = (
            f"{quote(column)}={format_partition_value(values[name])}/"
            for column, name in zip(partition_columns, names, strict=True)
        )
        yield "".join(folders), table.filter(mask)


def get_column_values(table: pa.Table, column: str) -> pa.ChunkedArray:
    """The values of a column, or of a field such as answer.currency."""
    first, *fields = column.split(".")
    return pc.struct_field(table[first], fields) if fields else table[first]


def format_partition_value(value: object) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return NULL_PARTITION if value is None or not text else quote(text, safe="")


def check_partition_columns(schema: pa.Schema, partition_columns: Sequence[str]) -> None:
    """Refuse a column that does not exist or whose values cannot name folders."""
    for column in partition_columns:
        column_type = find_column_type(schema, column)
        if column_type is None:
            raise OutputError(f"--partition-by {column}: there is no such column; there are {', '.join(schema.names)}")
        if not any(is_type(column_type) for is_type in PARTITION_TYPE_CHECKS):
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
