"""A job's answers -> the clean table: one row for each row of the manifest that is answered, in large files.

What goes in is settled first: the parts of the manifest's chunks, in its order, then those rows of older parts that
the manifest still asks. Each file's worth of them is written under a name that follows from them, and counted by a
note that can be created once: an export that was interrupted goes on with the files that have no note. A folder holds
one export; what it is an export of stands in `_export.json`, and `_SUCCESS` appears when it is whole.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.context import RunContext
from pipeline.errors import JobError, OutputError
from pipeline.export.partitioned_files import PartitionedFileWriter, check_partition_columns
from pipeline.job.spec import Job
from pipeline.manifest.chunks import split_file
from pipeline.manifest.files import ManifestFile, list_manifest_files
from pipeline.output.arrow_tables import COLUMN_DESCRIPTIONS, build_data_schema
from pipeline.output.dataset import Dataset, list_questions, split_part_name
from pipeline.output.store import ObjectInfo, OutputStore
from pipeline.output.thread_map import map_in_threads
from pipeline.run import preflight, resume, retry_errors
from pipeline.run.dedup import HashBuckets, find_common_rows, find_duplicates
from pipeline.run.log import Say


@dataclass(frozen=True, slots=True)
class ExportSource:
    """One part, or some rows of it."""

    part_name: str
    size_bytes: int
    max_rows: int  # at most
    row_offsets: tuple[int, ...] | None = None


def export_table(job: Job, target: str, *, rows_per_file: int, partition_by: Sequence[str], say: Say) -> None:
    manifest = list_manifest_files(job)
    work = preflight.build_run_context(job, manifest)
    store, goal, schema = OutputStore(work.job.output.path), OutputStore(target), build_data_schema(work)
    check_partition_columns(schema, partition_by)
    if goal.root == store.root:
        raise JobError(f"{target}: is the job's own output; export to another folder")
    if work.fingerprint not in list_questions(store):
        raise OutputError(f"{store.path}: holds no answers to this question; run the job first")
    dataset = Dataset(store, work.fingerprint)
    todo = resume.build_resume_plan(work, manifest, dataset)
    sources = list_sources(todo, manifest, work, store)
    settings = {"rows_per_file": rows_per_file, "partition_by": list(partition_by)}
    claim_export_folder(goal, work, schema, sources, settings)
    rows = 0
    groups = list(group_sources(sources, rows_per_file))
    done = goal.list_names("_groups")
    for number, group in enumerate(groups, 1):
        name = hash_json(
            [
                work.fingerprint,
                list(partition_by),
                [(each.part_name, each.size_bytes, each.row_offsets) for each in group],
            ]
        )
        if f"{name}.json" not in done:
            write_group(name, group, ExportTask(work, store, goal, partition_by))
        rows += int(json.loads(goal.read_object(f"_groups/{name}.json"))["rows"])
        say(f"{rows:,} rows, {number:,} of {len(groups):,} groups")
    wrong = sum(1 for _ in retry_errors.read_failed_rows(retry_errors.find_retry_scope(todo, dataset), dataset))
    if rows + wrong + todo.rows_left != todo.rows:
        raise OutputError(
            f"{store.path}: {rows:,} answered, {wrong:,} failed and {todo.rows_left:,} open rows are not the "
            f"{todo.rows:,} of the manifest; is a run at work? Export to another folder when it has ended"
        )
    goal.create_object("_SUCCESS", b"")
    say(f"{target}: {rows:,} of {todo.rows:,} rows")
    if wrong or todo.rows_left:
        say(f"missing: {wrong:,} rows that failed (run --retry-errors), {todo.rows_left:,} not asked yet (run)")


def list_sources(
    resume_plan: resume.ResumePlan, manifest_files: Sequence[ManifestFile], context: RunContext, store: OutputStore
) -> list[ExportSource]:
    """The parts of the manifest's chunks in its order, then what it still asks of others."""
    there = Dataset(store, context.fingerprint).list_parts()
    left = {
        chunk.name for chunk in resume_plan.remaining_chunks
    }  # also where a run at work has committed them meanwhile
    parts: dict[str, list[tuple[int, str]]] = {}
    for part in there:
        name, generation = split_part_name(part)
        parts.setdefault(name, []).append((generation, part))
    current = [
        ExportSource(part, there[part].size, chunk.asked_row_count)
        for chunk in resume_plan.chunks
        for _, part in sorted(parts.get(chunk.name, ()))
        if chunk.name not in left
    ]
    return (
        [*current, *list_orphan_sources(resume_plan.orphan_parts, there, manifest_files, context, store)]
        if resume_plan.orphan_parts
        else current
    )


def list_orphan_sources(
    orphan_parts: Sequence[str],
    part_infos: dict[str, ObjectInfo],
    manifest_files: Sequence[ManifestFile],
    context: RunContext,
    store: OutputStore,
) -> Iterator[ExportSource]:
    """Rows of parts whose chunk is no longer in the manifest, where the rows are. Bucket by bucket."""
    with HashBuckets() as asked, HashBuckets() as rows:
        for file in manifest_files:
            for _, some in split_file(context.job, file, context.schema_prompt):
                asked.add_hashes(some)
        starts = [0]
        for hashes in resume.read_row_hashes(orphan_parts, Dataset(store, context.fingerprint)):
            rows.add_hashes(hashes)
            starts.append(rows.row_count)
        wanted = [theirs["at"][find_common_rows(theirs, ours)] for ours, theirs in zip(asked, rows, strict=True)]
        twice = np.concatenate([find_duplicates(theirs)[0] for theirs in rows])
    chosen = np.setdiff1d(np.concatenate(wanted), twice)
    for number, offsets in resume.group_by_chunk(chosen, np.array(starts)):
        yield ExportSource(orphan_parts[number], part_infos[orphan_parts[number]].size, len(offsets), offsets)


def group_sources(sources: Iterable[ExportSource], rows_per_file: int) -> Iterator[list[ExportSource]]:
    """So many that a file has no more rows than it may, unless one part alone has."""
    group: list[ExportSource] = []
    rows = 0
    for source in sources:
        if group and rows + source.max_rows > rows_per_file:
            yield group
            group, rows = [], 0
        group.append(source)
        rows += source.max_rows
    if group:
        yield group


def list_folder_entries(target_store: OutputStore) -> set[str]:
    """The names of what lies in a folder, whether files or folders."""
    try:
        found = target_store.run_with_retries(
            "", lambda: target_store.filesystem.ls(target_store.root, detail=False), missing_ok=True
        )
    except FileNotFoundError:
        return set()
    return {path.rstrip("/").rpartition("/")[2] for path in found if path.rstrip("/") != target_store.root}


def claim_export_folder(
    target_store: OutputStore,
    context: RunContext,
    schema: pa.Schema,
    sources: Sequence[ExportSource],
    settings: dict[str, object],
) -> None:
    """`_export.json`: what the folder is an export of. Another one is refused, and so is a folder of other things."""
    there = list_folder_entries(target_store)
    if there and "_export.json" not in there:
        raise OutputError(f"{target_store.path} holds {sorted(there)[0]} and is no export; export to an empty folder")
    said = {
        "fingerprint": context.fingerprint,
        **settings,
        "parts": len(sources),
        "bytes": sum(source.size_bytes for source in sources),
        "sources": hash_json(sorted((source.part_name, source.size_bytes, source.row_offsets) for source in sources)),
        "columns": {
            field.name: {"type": str(field.type), "is": COLUMN_DESCRIPTIONS.get(field.name, "")} for field in schema
        },
    }
    if target_store.create_object("_export.json", json.dumps(said, indent=2).encode()):
        return
    before = json.loads(target_store.read_object("_export.json"))
    differs = [name for name in said if name != "columns" and said[name] != before.get(name)]
    if differs:
        what = ", ".join(f"{name}: was {before.get(name)}, is {said[name]}" for name in differs if name != "sources")
        raise OutputError(
            f"{target_store.path} holds another export ({what or 'other answers'}); "
            "export to another folder, one a day for instance, or delete this one"
        )


@dataclass(frozen=True, slots=True)
class ExportTask:
    """From where, to where."""

    context: RunContext
    store: OutputStore
    target_store: OutputStore
    partition_columns: Sequence[str]


def write_group(group_name: str, group: Sequence[ExportSource], task: ExportTask) -> None:
    """The files of a group, then its note."""
    rows = 0
    with PartitionedFileWriter(build_data_schema(task.context), task.partition_columns) as out:
        for table in map_in_threads(lambda source: read_source_rows(source, task.context, task.store), group):
            out.add_table(table)
            rows += table.num_rows
        out.finish()
        for place, path in out.paths_by_partition.items():
            task.target_store.upload_file(f"{place}{group_name}.parquet", path)
    note = {"rows": rows, "files": sorted(f"{place}{group_name}.parquet" for place in out.paths_by_partition)}
    task.target_store.create_object(f"_groups/{group_name}.json", json.dumps(note).encode())


def read_source_rows(source: ExportSource, context: RunContext, store: OutputStore) -> pa.Table:
    """In the columns that all files have, also where the manifest's types of kept columns have changed since."""
    schema = build_data_schema(context)
    table = Dataset(store, context.fingerprint).read_part(source.part_name).replace_schema_metadata(None)
    if source.row_offsets is not None:
        table = table.take(list(source.row_offsets))
    columns = [
        table[field.name].cast(field.type) if field.name in table.column_names else pa.nulls(table.num_rows, field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def hash_json(value: object) -> str:
    return hashlib.blake2b(json.dumps(value).encode(), digest_size=12).hexdigest()
