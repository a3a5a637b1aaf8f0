"""Exports the answers of a job in one format.

Rows are written in groups. A group's name follows from its rows, and its note in `_groups/` is created when its files
are complete, so an interrupted export continues with the groups that have no note. `_export.json` says what a folder
is an export of; `_SUCCESS` appears when every row of the manifest is exported, failed or left to ask.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from pipeline.errors import JobError, OutputError
from pipeline.export.base import Exporter, ExportOptions, ExportTask
from pipeline.export.export_sources import ExportSource, group_sources, list_sources, read_source_rows
from pipeline.job.spec import Job
from pipeline.manifest.files import list_manifest_files
from pipeline.output.arrow_tables import COLUMN_DESCRIPTIONS, build_data_schema
from pipeline.output.dataset import Dataset, list_questions
from pipeline.output.store import OutputStore
from pipeline.output.thread_map import map_in_threads
from pipeline.registry import EXPORTERS, load_registered
from pipeline.run import preflight, resume, retry_errors

DEFAULT_FORMAT = "table"


def export_job(
    job: Job, target_path: str, format_name: str, options: ExportOptions, say: Callable[[str], None]
) -> None:
    manifest_files = list_manifest_files(job)
    context = preflight.build_run_context(job, manifest_files)
    store = OutputStore(context.job.output.path)
    dataset = Dataset(store, context.fingerprint)
    task = ExportTask(context, build_data_schema(context), OutputStore(target_path), options)
    exporter: Exporter = load_registered(EXPORTERS, format_name, "--to")(task)
    if task.target.root == store.root:
        raise JobError(f"{target_path} is the job's own output; export to another folder")
    if context.fingerprint not in list_questions(store):
        raise OutputError(f"{store.path}: holds no answers to this question; run the job first")
    plan = resume.build_resume_plan(context, manifest_files, dataset)
    sources = list_sources(plan, manifest_files, context, dataset)
    claim_target(task, format_name, sources)
    row_count, files = write_groups(exporter, task, sources, dataset, say)
    retry_scope = retry_errors.find_retry_scope(plan, dataset)
    failed_count = sum(1 for _ in retry_errors.read_failed_rows(retry_scope, dataset))
    if row_count + failed_count + plan.rows_left != plan.rows:
        raise OutputError(
            f"{store.path}: {row_count:,} answered, {failed_count:,} failed and {plan.rows_left:,} unasked rows do not "
            f"add up to the {plan.rows:,} rows of the manifest; if a run is at work, export to another folder when it "
            "has ended"
        )
    exporter.finish(files)
    task.target.create_object("_SUCCESS", b"")
    say(f"{target_path}: {row_count:,} of {plan.rows:,} rows")
    if failed_count or plan.rows_left:
        say(f"missing: {failed_count:,} rows that failed (run --retry-errors), {plan.rows_left:,} not asked yet (run)")


def claim_target(task: ExportTask, format_name: str, sources: Sequence[ExportSource]) -> None:
    """Create `_export.json`. Refuse a folder that holds another export or something else."""
    target = task.target
    entries = target.list_top_entries()
    if entries and "_export.json" not in entries:
        raise OutputError(f"{target.path} holds {min(entries)} and is no export; export to an empty folder")
    claim: dict[str, Any] = {
        "fingerprint": task.context.fingerprint,
        "rows_per_file": task.options.rows_per_file,
        "partition_by": list(task.options.partition_by),
        "parts": len(sources),
        "bytes": sum(source.size_bytes for source in sources),
        "sources": hash_json(sorted((source.part_name, source.size_bytes, source.row_offsets) for source in sources)),
        "columns": {
            field.name: {"type": str(field.type), "is": COLUMN_DESCRIPTIONS.get(field.name, "")}
            for field in task.columns
        },
    }
    if format_name != DEFAULT_FORMAT:  # exports of earlier versions are tables and name no format
        claim["format"] = format_name
    if target.create_object("_export.json", json.dumps(claim, indent=2).encode()):
        return
    before = {"format": DEFAULT_FORMAT, **json.loads(target.read_object("_export.json"))}
    now = {"format": DEFAULT_FORMAT, **claim}
    changes = [
        (name, before.get(name), now[name]) for name in now if name != "columns" and before.get(name) != now[name]
    ]
    if changes:
        shown = ", ".join(f"{name}: was {old}, is {new}" for name, old, new in changes if name != "sources")
        raise OutputError(
            f"{target.path} holds another export ({shown or 'other answers'}); export to another folder, for instance "
            "one a day, or delete this one"
        )


def write_groups(
    exporter: Exporter,
    task: ExportTask,
    sources: Sequence[ExportSource],
    dataset: Dataset,
    say: Callable[[str], None],
) -> tuple[int, list[str]]:
    """Write the groups that have no note yet. Returns the rows and the files of all groups."""
    row_count, files = 0, []
    groups = list(group_sources(sources, task.options.rows_per_file))
    noted = task.target.list_names("_groups")
    for number, group in enumerate(groups, 1):
        identity = [(source.part_name, source.size_bytes, source.row_offsets) for source in group]
        name = hash_json([task.context.fingerprint, list(task.options.partition_by), identity])
        if f"{name}.json" not in noted:
            write_group(exporter, name, group, task, dataset)
        note = json.loads(task.target.read_object(f"_groups/{name}.json"))
        row_count += note["rows"]
        files += note["files"]
        say(f"{row_count:,} rows, {number:,} of {len(groups):,} groups")
    return row_count, files


def write_group(
    exporter: Exporter, name: str, group: Sequence[ExportSource], task: ExportTask, dataset: Dataset
) -> None:
    """Write the files of a group, then its note."""
    row_count = 0

    def read_tables() -> Iterator[pa.Table]:
        nonlocal row_count
        for table in map_in_threads(lambda source: read_source_rows(source, task.columns, dataset), group):
            row_count += table.num_rows
            yield table

    files = exporter.write_group(name, read_tables())
    task.target.create_object(f"_groups/{name}.json", json.dumps({"rows": row_count, "files": files}).encode())


def hash_json(value: object) -> str:
    return hashlib.blake2b(json.dumps(value).encode(), digest_size=12).hexdigest()
