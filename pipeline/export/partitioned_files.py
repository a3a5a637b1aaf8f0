"""Tables as they come -> one large Parquet file for each partition among them, in Hive's folders.

Files are written on this machine and handed over whole. What waits to be written is bounded; a row group is what
came together, so many partitions in random order make small ones.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from urllib.parse import quote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import OutputError

MAX_BUFFERED_ROWS = 2**16  # rows that wait before they are written
MAX_PARTITIONS = 1000  # partitions in one file's worth of rows
NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"
PARTITION_TYPE_CHECKS = (
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_integer,
    pa.types.is_boolean,
    pa.types.is_date,
)


class PartitionedFileWriter:
    """Open for one file's worth of rows. `written` is there after `end`."""

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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for writer in self.writers_by_partition.values():
            writer.close()
        self.temp_folder.cleanup()

    def add_table(self, table: pa.Table) -> None:
        self.buffered_tables.append(table)
        self.buffered_rows += table.num_rows
        if self.buffered_rows >= MAX_BUFFERED_ROWS:
            self.flush()

    def finish(self) -> None:
        self.flush()
        for writer in self.writers_by_partition.values():
            writer.close()

    def flush(self) -> None:
        if not self.buffered_rows:
            return
        for place, rows in split_by_partition(pa.concat_tables(self.buffered_tables), self.partition_columns):
            self.get_writer(place).write_table(rows.select(self.schema.names))
        self.buffered_tables, self.buffered_rows = [], 0

    def get_writer(self, partition_folder: str) -> pq.ParquetWriter:
        if partition_folder not in self.writers_by_partition:
            if len(self.writers_by_partition) >= MAX_PARTITIONS:
                raise OutputError(
                    f"--partition-by {' '.join(self.partition_columns)}: more than {MAX_PARTITIONS} values; take a column with fewer"
                )
            self.paths_by_partition[partition_folder] = (
                Path(self.temp_folder.name) / f"{len(self.writers_by_partition)}.parquet"
            )
            self.writers_by_partition[partition_folder] = pq.ParquetWriter(
                self.paths_by_partition[partition_folder], self.schema, compression="zstd"
            )
        return self.writers_by_partition[partition_folder]


def split_by_partition(table: pa.Table, partition_columns: Sequence[str]) -> Iterator[tuple[str, pa.Table]]:
    if not partition_columns:
        yield "", table
        return
    names = [f"c{number}" for number in range(len(partition_columns))]
    keys = pa.table([get_column_values(table, column) for column in partition_columns], names=names)
    for key in keys.group_by(names, use_threads=False).aggregate([]).to_pylist():
        same = [
            pc.is_null(keys[name]) if key[name] is None else pc.fill_null(pc.equal(keys[name], key[name]), False)
            for name in names
        ]
        chosen = same[0]
        for other in same[1:]:
            chosen = pc.and_(chosen, other)
        place = "".join(
            f"{quote(column)}={format_partition_value(key[name])}/"
            for column, name in zip(partition_columns, names, strict=True)
        )
        yield place, table.filter(chosen)


def get_column_values(table: pa.Table, column: str) -> pa.ChunkedArray:
    """A column, or a field of one: answer.currency."""
    first, *fields = column.split(".")
    return pc.struct_field(table[first], fields) if fields else table[first]


def format_partition_value(value: object) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return NULL_PARTITION if value is None or not text else quote(text, safe="")


def check_partition_columns(schema: pa.Schema, partition_columns: Sequence[str]) -> None:
    """Refuse a column that is not there, or whose values make no folders."""
    for column in partition_columns:
        first, *fields = column.split(".")
        kind = schema.field(first).type if first in schema.names else None
        for name in fields:
            kind = (
                kind.field(name).type
                if kind is not None and pa.types.is_struct(kind) and has_field(kind, name)
                else None
            )
        if kind is None:
            raise OutputError(f"--partition-by {column}: there is no such column; there are {', '.join(schema.names)}")
        if not any(fits(kind) for fits in PARTITION_TYPE_CHECKS):
            raise OutputError(f"--partition-by {column}: {kind} makes no folders; text, whole numbers and dates do")


def has_field(struct: pa.StructType, name: str) -> bool:
    return any(struct.field(number).name == name for number in range(struct.num_fields))
