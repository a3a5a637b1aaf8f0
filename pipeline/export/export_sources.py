"""Chooses the rows of an export: each row of the manifest that is answered, once, in the manifest's order.

The parts of the manifest's chunks come first. Rows that the manifest still asks but that were answered in a part whose
chunk is gone, because the manifest was rewritten, follow.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.context import RunContext
from pipeline.manifest.chunks import split_file
from pipeline.manifest.files import ManifestFile
from pipeline.output.dataset import Dataset, split_part_name
from pipeline.output.store import ObjectInfo
from pipeline.run import resume
from pipeline.run.dedup import HashBuckets, find_common_rows, find_duplicates


@dataclass(frozen=True, slots=True)
class ExportSource:
    """A part, or some rows of it."""

    part_name: str
    size_bytes: int
    max_rows: int  # the part may have fewer: some rows failed
    row_offsets: tuple[int, ...] | None = None  # None means all rows


def list_sources(
    plan: resume.ResumePlan, manifest_files: Sequence[ManifestFile], context: RunContext, dataset: Dataset
) -> list[ExportSource]:
    part_infos = dataset.list_parts()
    generations: dict[str, list[tuple[int, str]]] = {}
    for part in part_infos:
        chunk_name, generation = split_part_name(part)
        generations.setdefault(chunk_name, []).append((generation, part))
    remaining = {chunk.name for chunk in plan.remaining_chunks}  # a run may have committed some of them since
    sources = [
        ExportSource(part, part_infos[part].size, chunk.asked_row_count)
        for chunk in plan.chunks
        if chunk.name not in remaining
        for _, part in sorted(generations.get(chunk.name, ()))
    ]
    if plan.orphan_parts:
        sources += _list_orphan_sources(plan.orphan_parts, part_infos, manifest_files, context, dataset)
    return sources


def _list_orphan_sources(
    orphan_parts: Sequence[str],
    part_infos: Mapping[str, ObjectInfo],
    manifest_files: Sequence[ManifestFile],
    context: RunContext,
    dataset: Dataset,
) -> Iterator[ExportSource]:
    """The rows of orphan parts that the manifest asks. A row that several parts answer counts once."""
    with HashBuckets() as asked_rows, HashBuckets() as orphan_rows:
        for file in manifest_files:
            for _, hashes in split_file(context.job, file, context.schema_prompt):
                asked_rows.add_hashes(hashes)
        first_rows = [0]  # of each orphan part
        for hashes in resume.read_row_hashes(orphan_parts, dataset):
            orphan_rows.add_hashes(hashes)
            first_rows.append(orphan_rows.row_count)
        buckets = zip(asked_rows, orphan_rows, strict=True)
        wanted = np.concatenate([orphans["at"][find_common_rows(orphans, asked)] for asked, orphans in buckets])
        duplicates = np.concatenate([find_duplicates(orphans)[0] for orphans in orphan_rows])
    for number, offsets in resume.group_by_chunk(np.setdiff1d(wanted, duplicates), np.array(first_rows)):
        part = orphan_parts[number]
        yield ExportSource(part, part_infos[part].size, len(offsets), offsets)


def group_sources(sources: Iterable[ExportSource], rows_per_file: int) -> Iterator[list[ExportSource]]:
    """Consecutive sources that together stay within the limit; a single source may exceed it."""
    group: list[ExportSource] = []
    row_count = 0
    for source in sources:
        if group and row_count + source.max_rows > rows_per_file:
            yield group
            group, row_count = [], 0
        group.append(source)
        row_count += source.max_rows
    if group:
        yield group


def read_source_rows(source: ExportSource, columns: pa.Schema, dataset: Dataset) -> pa.Table:
    """The rows in the given columns: a part of an earlier version may lack some or have other types."""
    table = dataset.read_part(source.part_name)
    if source.row_offsets is not None:
        table = table.take(list(source.row_offsets))
    arrays = [
        table[field.name].cast(field.type) if field.name in table.column_names else pa.nulls(table.num_rows, field.type)
        for field in columns
    ]
    return pa.table(arrays, schema=columns)
