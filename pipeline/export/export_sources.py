"""Chooses the rows of an export, and joins answers with the kept columns of today's manifest.

A source is what the output holds for one chunk of the manifest, or an orphan part, whose chunk is gone. It answers the
rows of its chunk and rows elsewhere in the manifest: those that repeat one of them, and those that stood in another
chunk when they were answered. Such foreign rows wait in a spool until their source is exported. Rows that ask the same
and have the same kept values are exported once.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, overload

import numpy as np
import pyarrow as pa

from pipeline.context import RunContext
from pipeline.errors import JobError
from pipeline.export.chunk_rows import ChunkRow, ChunkRowReader
from pipeline.export.row_matching import Numbers, match_foreign_rows
from pipeline.export.row_spool import RowSpool
from pipeline.manifest.chunk_table import ChunkTable
from pipeline.manifest.chunks import Chunk
from pipeline.manifest.row_keys import encode_canonical_json, hash_row_keys
from pipeline.output.dataset import Dataset
from pipeline.output.thread_map import map_in_threads
from pipeline.run.dedup import HashBuckets
from pipeline.run.orphans import group_by_span
from pipeline.run.resume import ResumePlan

SourceIdentity = tuple[tuple[str, ...], int]  # its parts, and their bytes


@dataclass(frozen=True, slots=True)
class ExportSource:
    number: int
    parts: tuple[str, ...]  # the generations of a chunk, or one orphan part
    size_bytes: int
    chunk: Chunk | None  # None for an orphan part
    foreign_rows: int = 0

    @property
    def max_rows(self) -> int:
        """Fewer are exported where rows failed or are equal."""
        return (self.chunk.asked_row_count if self.chunk else 0) + self.foreign_rows


class ExportSources(Sequence[ExportSource]):
    """Makes its sources when they are asked for, because an output may have a million parts. The parts are those that
    the plan knows: what a run commits or deletes meanwhile does not count.
    """

    def __init__(self, plan: ResumePlan):
        self.parts = plan.parts
        self.are_answered = plan.parts.hold(plan.chunks.part_names)  # of all chunks of the plan
        self.chunks = plan.chunks.select(self.are_answered)
        self.starts, self.ends = plan.parts.locate_generations(self.chunks.part_names)  # of each chunk's parts
        self.orphans: Sequence[tuple[int, str]] = ()  # the numbers and parts of those that answer a row
        self.foreign_rows = Counter[int]()  # by the source's number

    def add_foreign_rows(self, counts: Counter[int], orphan_parts: Iterable[str]) -> None:
        self.foreign_rows = counts
        self.orphans = [each for each in enumerate(orphan_parts, len(self.chunks)) if each[0] in counts]

    def __len__(self) -> int:
        return len(self.chunks) + len(self.orphans)

    @overload
    def __getitem__(self, index: int) -> ExportSource: ...
    @overload
    def __getitem__(self, index: slice) -> SourceRange: ...
    def __getitem__(self, index: int | slice) -> ExportSource | SourceRange:
        if isinstance(index, slice):
            return SourceRange(self, range(len(self))[index])
        index = range(len(self))[index]
        if index < len(self.chunks):
            return self._build(index, self.chunks[index])
        number, part = self.orphans[index - len(self.chunks)]
        return ExportSource(number, (part,), self.parts[part].size, None, self.foreign_rows[number])

    def __iter__(self) -> Iterator[ExportSource]:
        for number, chunk in enumerate(self.chunks):
            yield self._build(number, chunk)
        yield from (self[index] for index in range(len(self.chunks), len(self)))

    def _build(self, number: int, chunk: Chunk) -> ExportSource:
        return ExportSource(number, *self._identify(number), chunk, self.foreign_rows[number])

    def _identify(self, number: int) -> SourceIdentity:
        start, end = self.starts[number], self.ends[number]
        sizes = self.parts.records["size"][start:end].tolist()
        return tuple(self.parts.list_names(start, end)), sum(sizes)

    @cached_property
    def max_rows(self) -> Numbers:
        """Of each source."""
        numbers = [*range(len(self.chunks)), *(number for number, _ in self.orphans)] if self.foreign_rows else []
        rows: Numbers = np.concatenate([self.chunks.asked_row_counts, np.zeros(len(self.orphans), np.int64)])
        rows += np.array([self.foreign_rows[number] for number in numbers] or [0])
        return rows

    def identify(self, indexes: range | None = None) -> Iterator[SourceIdentity]:
        for index in range(len(self)) if indexes is None else indexes:
            if index < len(self.chunks):
                yield self._identify(index)
            else:
                _, part = self.orphans[index - len(self.chunks)]
                yield (part,), self.parts[part].size


@dataclass(frozen=True, slots=True)
class SourceRange(Sequence[ExportSource]):
    """Consecutive sources."""

    sources: ExportSources
    indexes: range

    def __len__(self) -> int:
        return len(self.indexes)

    def __getitem__(self, index: Any) -> Any:
        return self.sources[self.indexes[index]]

    @property
    def max_rows(self) -> int:
        return int(self.sources.max_rows[self.indexes.start : self.indexes.stop].sum())


class AnswerReader:
    """Reads the rows of an export, source by source. `digest` changes with the rows and their kept values."""

    def __init__(self, plan: ResumePlan, context: RunContext, dataset: Dataset):
        self.context, self.dataset = context, dataset
        self.row_reader = ChunkRowReader(context)
        self.spool = RowSpool()
        self.hash = hashlib.blake2b(digest_size=12)
        self.sources = ExportSources(plan)
        pairs = self._survey_manifest(plan)
        self.sources.add_foreign_rows(self._spool_foreign_rows(plan.chunks, pairs), plan.orphans.parts)
        self.digest = self.hash.hexdigest()

    def close(self) -> None:
        self.spool.close()

    def _survey_manifest(self, plan: ResumePlan) -> Numbers:
        """The foreign rows, see `match_foreign_rows`."""
        no_pairs: Numbers = np.empty((0, 2), np.int64)
        keeps_columns = bool(self.context.job.input.keep)
        has_foreign_rows = bool(plan.orphans.parts) or (keeps_columns and plan.duplicate_rows > 0)
        if not keeps_columns and not has_foreign_rows:
            return no_pairs
        are_answered = self.sources.are_answered
        with HashBuckets() as asked_rows:
            for chunk, is_answered in zip(plan.chunks, are_answered.tolist(), strict=True):
                rows = self.row_reader.read_rows(chunk)
                if is_answered:
                    self._add_to_digest(row for offset, row in enumerate(rows) if offset not in chunk.skipped_offsets)
                if has_foreign_rows:
                    asked_rows.add_hashes(hash_row_keys([(row.id, row.question) for row in rows]))
            if not has_foreign_rows:
                return no_pairs
            return match_foreign_rows(
                asked_rows,
                chunk_starts=plan.chunks.first_rows[:-1],
                chunk_sources=np.where(are_answered, np.cumsum(are_answered) - 1, -1),
                source_count=len(self.sources),
                list_source_parts=lambda number: self.sources[number].parts,
                orphan_parts=plan.orphans.parts,
                parts=plan.parts,
                dataset=self.dataset,
            )

    def _spool_foreign_rows(self, chunks: ChunkTable, pairs: Numbers) -> Counter[int]:
        """Returns the number of foreign rows of each source."""
        starts = chunks.first_rows
        sources = iter(pairs[:, 1].tolist())
        counts: Counter[int] = Counter()
        for index, offsets in group_by_span(pairs[:, 0], starts):
            rows = self.row_reader.read_rows(chunks[index])
            foreign_rows = [(next(sources), rows[offset]) for offset in offsets]
            self.spool.add_rows(foreign_rows)
            self._add_to_digest(row for _, row in foreign_rows)
            counts.update(source for source, _ in foreign_rows)
        self.spool.build_index()
        return counts

    def _add_to_digest(self, rows: Iterable[ChunkRow]) -> None:
        for row in rows:
            self.hash.update(encode_canonical_json([row.id, row.kept_values]).encode())

    def read_tables(self, sources: Sequence[ExportSource], columns: pa.Schema) -> Iterator[pa.Table]:
        """The rows of each source in the given columns. The parts are read ahead, the manifest is read forward."""
        answer_columns = pa.schema([field for field in columns if field.name not in self.context.kept_schema.names])
        answers = map_in_threads(lambda source: read_answers(source, answer_columns, self.dataset), sources)
        for source, answered in zip(sources, answers, strict=True):
            yield self._join_rows(source, answered, columns)

    def _join_rows(self, source: ExportSource, answered: pa.Table, columns: pa.Schema) -> pa.Table:
        kept_schema = self.context.kept_schema
        if source.chunk and not kept_schema.names:
            return answered
        rows: list[ChunkRow] = []
        if source.chunk:
            chunk_rows = self.row_reader.read_rows(source.chunk)
            rows = [row for offset, row in enumerate(chunk_rows) if offset not in source.chunk.skipped_offsets]
        rows += self.spool.read_rows(source.number)
        if source.foreign_rows:
            rows = list({encode_canonical_json([row.id, row.kept_values]): row for row in rows}.values())
        places = {row_id: place for place, row_id in enumerate(answered["id"].to_pylist())}
        rows = sorted((row for row in rows if row.id in places), key=lambda row: places[row.id])
        if misfit := next((row.misfit for row in rows if row.misfit), None):
            raise JobError(misfit)  # the row was answered when the value was another
        answered = answered.take(pa.array([places[row.id] for row in rows], pa.int64()))
        arrays = [
            pa.array([row.kept_values[field.name] for row in rows], field.type)
            if field.name in kept_schema.names
            else answered[field.name]
            for field in columns
        ]
        return pa.table(arrays, schema=columns)


def group_sources(max_rows: Iterable[int], rows_per_file: int) -> Iterator[range]:
    """The indexes of consecutive sources that together stay within the limit; a single source may exceed it."""
    first = row_count = 0
    index = -1
    for index, source_rows in enumerate(max_rows):
        if index > first and row_count + source_rows > rows_per_file:
            yield range(first, index)
            first, row_count = index, 0
        row_count += source_rows
    if index >= first:
        yield range(first, index + 1)


def read_answers(source: ExportSource, columns: pa.Schema, dataset: Dataset) -> pa.Table:
    """The rows of all parts in the given columns: a part of an earlier version may lack some or have other types."""
    tables = [dataset.read_part(part) for part in source.parts]
    return pa.concat_tables([fit_columns(table, columns) for table in tables])


def fit_columns(table: pa.Table, columns: pa.Schema) -> pa.Table:
    if table.schema.equals(columns):
        return table
    arrays = [
        table[field.name].cast(field.type) if field.name in table.column_names else pa.nulls(table.num_rows, field.type)
        for field in columns
    ]
    return pa.table(arrays, schema=columns)


def hash_sources(digest: str, sources: Iterable[SourceIdentity]) -> tuple[str, int, int]:
    """A hash of all sources, as hash_json computes it, the number of their parts, and their bytes."""
    hash_, part_count, byte_count = hashlib.blake2b(digest_size=12), 0, 0
    hash_.update(f"[{json.dumps(digest)}, [".encode())
    for number, (parts, size_bytes) in enumerate(sources):
        hash_.update((", " if number else "").encode() + json.dumps([parts, size_bytes]).encode())
        part_count += len(parts)
        byte_count += size_bytes
    hash_.update(b"]]")
    return hash_.hexdigest(), part_count, byte_count


def hash_json(value: object) -> str:
    return hashlib.blake2b(json.dumps(value).encode(), digest_size=12).hexdigest()
