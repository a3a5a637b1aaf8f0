"""Finds rows that are alike, by a column of vectors: near duplicates, the nearest of some rows, or a diverse choice.

The answer is always one table: `id` is the row that was found, `of` the row that it is like, `cosine` how much. Of near
duplicates, `of` is the row to keep, which is not in the column `id`: so `run --except` with the table asks one row of
each group.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import OutputError
from pipeline.inspect.neighbours import vector_search
from pipeline.inspect.neighbours.vector_table import VectorTable, read_vectors
from pipeline.inspect.neighbours.whitening import whiten_vectors
from pipeline.inspect.output_reader import OutputReader
from pipeline.output.local_files import write_named_file
from pipeline.run.progress import format_count

NEIGHBOUR_SCHEMA = pa.schema([("id", pa.string()), ("of", pa.string()), ("cosine", pa.float32())])
PLAIN_COSINE, WHITENED_COSINE = 0.95, 0.8  # of near duplicates
EXACT_ROWS = 1_000_000  # from here on, a line tells of the index


@dataclass(frozen=True, slots=True)
class NeighbourOptions:
    """Near duplicates, unless rows are named or a number of diverse rows is wanted."""

    column: str | None = None
    above: float | None = None
    whiten: bool = False
    near_ids: tuple[str, ...] = ()
    nearest: int = 10
    diverse: int | None = None
    approximate: bool = False

    @property
    def least_cosine(self) -> float:
        return self.above or (WHITENED_COSINE if self.whiten else PLAIN_COSINE)


@dataclass(frozen=True, slots=True)
class FoundRow:
    id: str
    of: str | None  # None for the first of a diverse choice
    cosine: float | None


@dataclass(frozen=True)
class FoundNeighbours:
    rows: list[FoundRow]  # those that are like the same row are together
    table: VectorTable  # whose vectors were compared

    def describe(self, options: NeighbourOptions) -> str:
        """
        >>> rows = [FoundRow("b", "a", 0.99), FoundRow("c", "a", 0.98)]
        >>> import numpy as np
        >>> table = VectorTable([*"abcd"], np.ones((4, 1), np.float32), np.zeros(4, np.int64), without_vector=1)
        >>> FoundNeighbours(rows, table).describe(NeighbourOptions())
        '2 near duplicates of 1 row, among 4 rows; 1 row without a vector'
        """
        among = f"among {format_count(len(self.table.ids), 'row')}"
        if self.table.without_vector:
            among += f"; {format_count(self.table.without_vector, 'row')} without a vector"
        if options.near_ids:
            return f"{format_count(len(self.rows), 'row')} near {format_count(len(options.near_ids), 'row')}, {among}"
        if options.diverse is not None:
            return f"{format_count(len(self.rows), 'diverse row')}, {among}"
        kept = format_count(len({row.of for row in self.rows}), "row")
        return f"{format_count(len(self.rows), 'near duplicate')} of {kept}, {among}"

    def write(self, file: Path) -> None:
        columns = {name: [getattr(row, name) for row in self.rows] for name in NEIGHBOUR_SCHEMA.names}
        write_table(pa.table(columns, schema=NEIGHBOUR_SCHEMA), file)

    def write_vectors(self, file: Path) -> None:
        vectors = self.table.vectors
        values = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
        write_table(pa.table({"id": self.table.ids, "vector": values}), file)


def write_table(table: pa.Table, file: Path) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    write_named_file(file, bytes(sink.getvalue()))


def find_neighbours(
    reader: OutputReader, options: NeighbourOptions, report_share: Callable[[float], None], say: Callable[[str], None]
) -> FoundNeighbours:
    table = read_vectors(reader, options.column)
    if options.whiten:
        whiten_vectors(table.vectors)
    if options.near_ids:
        rows = find_nearest_rows(table, options)
    elif options.diverse is not None:
        picks = vector_search.choose_diverse(table.vectors, options.diverse, report_share)
        rows = [
            FoundRow(table.ids[index], table.ids[like.position] if like else None, like.cosine if like else None)
            for index, like in picks
        ]
    else:
        if len(table.ids) > EXACT_ROWS and not options.approximate:
            say(f"comparing {len(table.ids):,} rows with each other; --approximate takes much less time")
        rows = find_duplicates(table, options, report_share)
    return FoundNeighbours(rows, table)


def find_nearest_rows(table: VectorTable, options: NeighbourOptions) -> list[FoundRow]:
    positions = {row_id: position for position, row_id in enumerate(table.ids)}
    if unknown := [row_id for row_id in options.near_ids if row_id not in positions]:
        raise OutputError(f"--near {unknown[0]}: no row of that id has a vector")
    queries = [positions[row_id] for row_id in options.near_ids]
    nearest = vector_search.find_nearest(table.vectors, queries, options.nearest)
    return [
        FoundRow(table.ids[found.position], row_id, found.cosine)
        for row_id, neighbours in zip(options.near_ids, nearest, strict=True)
        for found in neighbours
    ]


def find_duplicates(
    table: VectorTable, options: NeighbourOptions, report_share: Callable[[float], None]
) -> list[FoundRow]:
    """The row with the largest media of a group is kept, and the others are its duplicates."""
    find_pairs = vector_search.find_pairs_in_index if options.approximate else vector_search.find_similar_pairs
    pairs = find_pairs(table.vectors, options.least_cosine, report_share)
    rows = []
    for group in vector_search.group_similar(pairs, len(table.ids)):
        kept, *others = sorted(group.tolist(), key=lambda index: (-table.pixels[index], table.ids[index]))
        cosines = table.vectors[others] @ table.vectors[kept]
        duplicates = sorted(zip(cosines.tolist(), others, strict=True), reverse=True)
        rows += [FoundRow(table.ids[index], table.ids[kept], cosine) for cosine, index in duplicates]
    return rows
