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

TOGETHER = 2**16  # rows that wait before they are written
MOST = 1000  # partitions in one file's worth of rows
EMPTY = "__HIVE_DEFAULT_PARTITION__"
TYPES = (pa.types.is_string, pa.types.is_large_string, pa.types.is_integer, pa.types.is_boolean, pa.types.is_date)


class Files:
    """Open for one file's worth of rows. `written` is there after `end`."""

    def __init__(self, schema: pa.Schema, by: Sequence[str]):
        self.by = by
        self.schema = pa.schema([field for field in schema if field.name not in by])
        self.folder = tempfile.TemporaryDirectory(prefix="vlbatch-")
        self.written: dict[str, Path] = {}  # by folder: "" or "currency=EUR/"
        self.writers: dict[str, pq.ParquetWriter] = {}
        self.waiting: list[pa.Table] = []
        self.waits = 0

    def __enter__(self) -> Files:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for writer in self.writers.values():
            writer.close()
        self.folder.cleanup()

    def add(self, table: pa.Table) -> None:
        self.waiting.append(table)
        self.waits += table.num_rows
        if self.waits >= TOGETHER:
            self.write()

    def end(self) -> None:
        self.write()
        for writer in self.writers.values():
            writer.close()

    def write(self) -> None:
        if not self.waits:
            return
        for place, rows in parted(pa.concat_tables(self.waiting), self.by):
            self.writer(place).write_table(rows.select(self.schema.names))
        self.waiting, self.waits = [], 0

    def writer(self, place: str) -> pq.ParquetWriter:
        if place not in self.writers:
            if len(self.writers) >= MOST:
                raise OutputError(
                    f"--partition-by {' '.join(self.by)}: more than {MOST} values; take a column with fewer"
                )
            self.written[place] = Path(self.folder.name) / f"{len(self.writers)}.parquet"
            self.writers[place] = pq.ParquetWriter(self.written[place], self.schema, compression="zstd")
        return self.writers[place]


def parted(table: pa.Table, by: Sequence[str]) -> Iterator[tuple[str, pa.Table]]:
    if not by:
        yield "", table
        return
    names = [f"c{number}" for number in range(len(by))]
    keys = pa.table([values(table, column) for column in by], names=names)
    for key in keys.group_by(names, use_threads=False).aggregate([]).to_pylist():
        same = [
            pc.is_null(keys[name]) if key[name] is None else pc.fill_null(pc.equal(keys[name], key[name]), False)
            for name in names
        ]
        chosen = same[0]
        for other in same[1:]:
            chosen = pc.and_(chosen, other)
        place = "".join(f"{quote(column)}={word(key[name])}/" for column, name in zip(by, names, strict=True))
        yield place, table.filter(chosen)


def values(table: pa.Table, column: str) -> pa.ChunkedArray:
    """A column, or a field of one: answer.currency."""
    first, *fields = column.split(".")
    return pc.struct_field(table[first], fields) if fields else table[first]


def word(value: object) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return EMPTY if value is None or not text else quote(text, safe="")


def check(schema: pa.Schema, by: Sequence[str]) -> None:
    """Refuse a column that is not there, or whose values make no folders."""
    for column in by:
        first, *fields = column.split(".")
        kind = schema.field(first).type if first in schema.names else None
        for name in fields:
            kind = kind.field(name).type if kind is not None and pa.types.is_struct(kind) and has(kind, name) else None
        if kind is None:
            raise OutputError(f"--partition-by {column}: there is no such column; there are {', '.join(schema.names)}")
        if not any(fits(kind) for fits in TYPES):
            raise OutputError(f"--partition-by {column}: {kind} makes no folders; text, whole numbers and dates do")


def has(struct: pa.StructType, name: str) -> bool:
    return any(struct.field(number).name == name for number in range(struct.num_fields))
