"""The base of formats that append to a table of a lake: Delta, Iceberg, Lance.

A table grows: each export appends the rows of the parts that it does not have yet. Which parts a group has is planned
and kept in `_groups/` before the group is written, and the name of the group is in the table's commit. So an export
that was killed between the two goes on with the same groups, and appends none twice. What a table has stays as it is.
"""

from __future__ import annotations

import json
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import OutputError
from pipeline.export.base import ExportTask
from pipeline.export.export_sources import ExportSource, group_sources, hash_json
from pipeline.output.store import OutputStore

GROUP_KEY = "vlbatch.group"  # in the metadata of a commit
PLAN_ENDING = ".plan"
NamedGroup = tuple[str, Sequence[ExportSource]]


class TableAppender(ABC):
    can_partition, can_split, media_choices = False, False, ()
    own_entries: ClassVar[frozenset[str]] = frozenset()  # what a table without rows may have in its folder

    def __init__(self, task: ExportTask):
        self.task = task

    @classmethod
    def locate_target(cls, target_path: str, columns: pa.Schema) -> str:
        """The folder of the table."""
        return target_path

    @abstractmethod
    def has_group(self, name: str) -> bool: ...

    @abstractmethod
    def append(self, name: str, rows: pa.RecordBatchReader) -> None: ...

    @abstractmethod
    def list_error_types(self) -> tuple[type[Exception], ...]:
        """What the table's library raises."""

    def write_group(self, name: str, tables: Iterable[pa.Table]) -> list[str]:
        """The rows wait in a file of this machine, because the libraries read them in threads of their own."""
        row_count = 0
        with tempfile.TemporaryDirectory(prefix="vlbatch-") as folder:
            path = f"{folder}/rows.parquet"
            with pq.ParquetWriter(path, self.task.columns) as writer:
                for table in tables:
                    row_count += table.num_rows
                    writer.write_table(table)
            try:
                if row_count and not self.has_group(name):
                    with pq.ParquetFile(path) as file:
                        self.append(name, pa.RecordBatchReader.from_batches(self.task.columns, file.iter_batches()))
            except self.list_error_types() as error:
                raise OutputError(f"{self.task.target.path}: the table does not take the rows ({error})") from error
        return []

    def finish(self, files: Sequence[str]) -> None:  # noqa: B027 - a table needs nothing beside its commits
        """Commits are all that a table needs."""


def plan_appends(
    target: OutputStore, sources: Sequence[ExportSource], rows_per_group: int, identity: Sequence[Any]
) -> list[NamedGroup]:
    """The groups that the table may lack: those that were planned and not completed, and those of new parts."""
    names = target.list_names("_groups")
    plans = {
        name.removesuffix(PLAN_ENDING): set(json.loads(target.read_object(f"_groups/{name}")))
        for name in sorted(names)
        if name.endswith(PLAN_ENDING)
    }
    planned = {part for parts in plans.values() for part in parts}
    groups: list[NamedGroup] = [
        (name, list(select_parts(sources, parts))) for name, parts in plans.items() if f"{name}.json" not in names
    ]
    new_parts = {part for source in sources for part in source.parts} - planned
    new_sources = list(select_parts(sources, new_parts))
    for own in group_sources([source.max_rows for source in new_sources], rows_per_group):
        group = new_sources[own.start : own.stop]
        parts = [part for source in group for part in source.parts]
        name = hash_json([*identity, parts])
        target.create_object(f"_groups/{name}{PLAN_ENDING}", json.dumps(parts).encode())
        groups.append((name, group))
    return groups


def select_parts(sources: Iterable[ExportSource], parts: set[str]) -> Iterator[ExportSource]:
    for source in sources:
        if selected := tuple(part for part in source.parts if part in parts):
            yield replace(source, parts=selected)
