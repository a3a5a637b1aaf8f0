"""Writes the rows of an export in groups.

A group's name follows from its rows, and its note in `_groups/` is created when its files are complete.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.export.base import Exporter, ExportTask
from pipeline.export.export_progress import ExportProgress
from pipeline.export.export_sources import AnswerReader, ExportSource, SourceRange, group_sources, hash_json
from pipeline.export.inline_media import InlineMediaReader, has_inline_media
from pipeline.export.remarks import Remarks
from pipeline.export.row_changes import RowChanges
from pipeline.export.table_appender import NamedGroup, TableAppender, plan_appends
from pipeline.manifest.chunks import Chunk, compute_slice_rows
from pipeline.run.log import Say


@dataclass
class WrittenGroups:
    rows: int = 0  # before --where
    repeats: int = 0  # of these, rows that ask the same as another one
    selected: int = 0  # by --where
    files: list[str] = field(default_factory=list)
    remarks: Remarks = field(default_factory=Remarks)

    @property
    def different_rows(self) -> int:
        return self.rows - self.repeats


@dataclass(frozen=True, slots=True)
class GroupWriter:
    exporter: Exporter
    task: ExportTask
    reader: AnswerReader
    changes: RowChanges

    def write_groups(self, say: Say) -> WrittenGroups:
        """Write the groups that have no note yet. Returns the sum of all groups."""
        target, written = self.task.target, WrittenGroups()
        groups = self.list_groups()
        noted = target.list_names("_groups")
        max_rows = sum(count_max_rows(group) for _, group in groups)
        with ExportProgress(len(groups), max_rows, say) as progress:
            for name, group in groups:
                if f"{name}.json" not in noted:
                    self.write_group(name, group, progress)
                note = json.loads(target.read_object(f"_groups/{name}.json"))
                written.rows += note["rows"]
                written.repeats += note["repeats"]
                written.selected += note.get("selected", note["rows"])
                written.files += note["files"]
                written.remarks.add_all(note.get("remarks", {}))
                progress.finish_group(note["rows"])
        return written

    def list_groups(self) -> list[NamedGroup]:
        rows_per_group = self.task.options.rows_per_file
        if isinstance(self.exporter, TableAppender):
            identity = [self.task.context.fingerprint, {**self.changes.identify(), **self.task.options.identify()}]
            return plan_appends(self.task.target, self.reader.sources, rows_per_group, identity)
        sources = self.reader.sources
        groups = group_sources(sources.max_rows.tolist(), rows_per_group)
        return [(self.name_group(own), SourceRange(sources, own)) for own in groups]

    def name_group(self, indexes: range) -> str:
        options = self.task.options.identify()
        identity: list[object] = [self.reader.digest, [*self.reader.sources.identify(indexes)]]
        identity += self.changes.identify().values()
        identity += [options] if options else []
        return hash_json([self.task.context.fingerprint, list(self.task.options.partition_by), identity])

    def write_group(self, name: str, group: Sequence[ExportSource], progress: ExportProgress) -> None:
        """Write the files of a group, then its note."""
        task = self.task
        row_count = repeat_count = selected_count = 0
        task.remarks.found.clear()
        inline_reader = InlineMediaReader(task.context)

        def read_tables() -> Iterator[pa.Table]:
            nonlocal row_count, repeat_count, selected_count
            for source, table in zip(group, self.reader.read_tables(group, task.columns), strict=True):
                row_count += table.num_rows
                repeat_count += table.num_rows - len(table["id"].unique())
                for rows in self.load_media(source.chunk, table, inline_reader):
                    selected = self.changes.apply(rows, task.remarks)
                    selected_count += selected.num_rows
                    yield selected
                progress.show_rows(row_count)

        files = self.exporter.write_group(name, read_tables())
        note = {"rows": row_count, "repeats": repeat_count, "files": files}
        note |= {"selected": selected_count} if self.changes.row_filter else {}
        note |= {"remarks": task.remarks.found} if task.remarks.found else {}
        task.target.create_object(f"_groups/{name}.json", json.dumps(note).encode())

    def load_media(self, chunk: Chunk | None, table: pa.Table, inline_reader: InlineMediaReader) -> Iterator[pa.Table]:
        """The rows. Where the manifest holds their media, slice by slice: the bytes of one are in memory at once."""
        has_bytes = self.task.options.media == "copy" and has_inline_media(table)
        for own in chunk.cut(compute_slice_rows(self.task.context.job)) if chunk and has_bytes else ():
            self.task.media_files.inline = inline_reader.read_chunk(own)
            are_own = pc.is_in(table["id"], pa.array([*self.task.media_files.inline], pa.string()))
            yield table.filter(are_own)
            table = table.filter(pc.invert(are_own))
        yield table  # the other rows


def count_max_rows(group: Sequence[ExportSource]) -> int:
    return group.max_rows if isinstance(group, SourceRange) else sum(source.max_rows for source in group)
