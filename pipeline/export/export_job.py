"""Exports the answers of a job in one format.

An interrupted export continues with the groups of rows that have no note yet. `_SUCCESS` appears unless rows of the
manifest were not asked yet.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, replace

import pyarrow as pa

from pipeline.errors import ExitCode, JobError, OutputError
from pipeline.export.base import Exporter, ExportOptions, ExportTask
from pipeline.export.export_claim import claim_target
from pipeline.export.export_sources import AnswerReader
from pipeline.export.group_writer import GroupWriter, WrittenGroups
from pipeline.export.hub_push import push_export
from pipeline.export.media_files import MediaFiles
from pipeline.export.option_checks import settle_options
from pipeline.export.row_changes import RowChanges
from pipeline.export.row_filter import RowFilter
from pipeline.export.table_appender import TableAppender
from pipeline.job.spec import Job
from pipeline.manifest.files import list_manifest_files
from pipeline.output.answer.confidence_maps import read_confidence_maps
from pipeline.output.arrow_tables import build_data_schema
from pipeline.output.dataset import Dataset, list_questions
from pipeline.output.dead_letters import read_notes, read_unresolved_letters
from pipeline.output.store import OutputStore
from pipeline.registry import EXPORTERS, load_registered
from pipeline.run import preflight, resume, retry_errors
from pipeline.run.chunk_size import settle_chunk_size
from pipeline.run.log import Say
from pipeline.run.progress import format_count
from pipeline.truth.job_truth import open_job_truth
from pipeline.truth.truth_index import TruthIndex
from pipeline.types import ConfidenceMaps


@dataclass(frozen=True)
class MissingRows:
    """The rows of the manifest that an export does not have."""

    failed: int
    unasked: int
    lost: int = 0  # in a part that was deleted

    @property
    def exit_code(self) -> ExitCode:
        """That of a run that left as many rows."""
        if self.unasked + self.lost:
            return ExitCode.INCOMPLETE
        return ExitCode.FAILED_ROWS if self.failed else ExitCode.ALL_ANSWERED

    def describe(self) -> str:
        lost = f", {self.lost:,} in a part that was deleted (run with another output.chunk_rows)" if self.lost else ""
        failed = f"{format_count(self.failed, 'row')} that failed (run --retry-errors)"
        return f"missing: {failed}, {self.unasked:,} not asked yet (run){lost}"


def export_job(
    job: Job,
    target_path: str,
    format_name: str,
    options: ExportOptions,
    say: Say,
    *,
    require_complete: bool = False,
) -> ExitCode:
    """`require_complete` exports nothing unless every row has an answer."""
    manifest_files = list_manifest_files(job, say)
    context = preflight.build_run_context(job, manifest_files)
    store = OutputStore(context.job.output.path)
    dataset = Dataset(store, context.fingerprint)
    exporter_type: type[Exporter] = load_registered(EXPORTERS, format_name, "--to")
    options = settle_options(exporter_type, format_name, options)
    with closing(MediaFiles(context.job)) as media_files:
        columns = build_data_schema(context)
        target = OutputStore(locate_target(exporter_type, target_path, columns, dataset))
        task = ExportTask(context, columns, target, options, media_files, target_path)
        exporter = exporter_type(task)
        if task.target.root == store.root:
            raise JobError(f"{target_path} is the job's own output; export to another folder")
        require_answers(dataset)
        changes = RowChanges(
            read_calibration(dataset) if options.calibrated else {},
            open_job_truth(options.truth, context) if options.truth else None,
            RowFilter(options.where, columns) if options.where else None,
        )
        context = settle_chunk_size(context, manifest_files, dataset).apply_to(context)
        plan = resume.build_resume_plan(context, manifest_files, dataset)
        missing = MissingRows(failed=count_failed_rows(plan, dataset), unasked=plan.rows_left)
        if require_complete and missing.exit_code:
            say(f"nothing is exported; {missing.describe()}")
            return missing.exit_code
        with closing(AnswerReader(plan, context, dataset)) as reader:
            claim_target(exporter, task, format_name, reader, changes)
            written = GroupWriter(exporter, task, reader, changes).write_groups(say)
            labelled_count = count_labelled_rows(plan, changes.truth, reader) if changes.truth else 0
        exporter.finish(written.files)
    is_growing = issubclass(exporter_type, TableAppender)
    lost_count = 0 if is_growing else plan.rows - written.different_rows - missing.failed - missing.unasked
    missing = replace(missing, unasked=missing.unasked - labelled_count, lost=lost_count)
    if missing.exit_code != ExitCode.INCOMPLETE:
        task.target.create_object("_SUCCESS", b"")
    for line in describe_written_rows(target_path, written, None if is_growing else plan.rows):
        say(line)
    if labelled_count:
        say(f"not asked, because people labelled them: {format_count(labelled_count, 'row')} of {options.truth}")
    if missing.exit_code:
        say(missing.describe())
    if options.push:
        publish(task, written, options.push, is_complete=missing.exit_code != ExitCode.INCOMPLETE, say=say)
    return missing.exit_code


def locate_target(exporter_type: type[Exporter], target_path: str, columns: pa.Schema, dataset: Dataset) -> str:
    if issubclass(exporter_type, TableAppender):
        require_answers(dataset)  # before a table is created
        return exporter_type.locate_target(target_path, columns)
    return target_path


def require_answers(dataset: Dataset) -> None:
    if dataset.fingerprint not in list_questions(dataset.store):
        raise OutputError(f"{dataset.store.path}: holds no answers to this question; run the job first")


def publish(task: ExportTask, written: WrittenGroups, repository: str, *, is_complete: bool, say: Say) -> None:
    if not is_complete:
        say(f"not pushed to {repository}: rows were not asked yet")
        return
    message = f"{task.context.job.name}: {format_count(written.selected, 'row')} by {task.context.model_name}"
    push_export(task.target, written.files, repository, message, say)


def read_calibration(dataset: Dataset) -> ConfidenceMaps:
    maps = read_confidence_maps(dataset)
    if not maps:
        raise OutputError(
            f"--calibrated: the newest score of this question in {dataset.store.path} calibrates no field, or there is "
            "none; run `python -m pipeline score OUTPUT --truth WHERE` with a truth of at least 20 values of a field"
        )
    return maps


def count_failed_rows(plan: resume.ResumePlan, dataset: Dataset) -> int:
    """The rows that failed and that no part answers, be it of this manifest or not."""
    retry_scope = retry_errors.find_retry_scope(plan, dataset.list_dead_letters(), dataset)
    notes = read_notes(dataset, plan.parts, retry_scope.failed_chunks)
    if plan.orphans.parts:
        retry_scope = replace(retry_scope, later_parts=plan.orphans.parts, notes=notes)
        return sum(1 for _ in retry_errors.read_failed_rows(retry_scope, dataset))
    retried = {name: parts for name, parts in retry_scope.failed_chunks.items() if len(parts) > 1}
    failed_once: int = sum(notes[name]["failed"] for name in retry_scope.failed_chunks.keys() - retried)
    return failed_once + sum(1 for _ in read_unresolved_letters(dataset, retried, notes))


def count_labelled_rows(plan: resume.ResumePlan, truth: TruthIndex, reader: AnswerReader) -> int:
    """The rows that were not asked and that people have labelled."""
    return sum(
        truth.knows(row.id)
        for chunk in plan.remaining_chunks
        for offset, row in enumerate(reader.row_reader.read_rows(chunk))
        if offset not in chunk.skipped_offsets
    )


def describe_written_rows(target_path: str, written: WrittenGroups, manifest_rows: int | None) -> list[str]:
    """`manifest_rows` is None for a table that grows."""
    if manifest_rows is None:
        return [f"{target_path}: {format_count(written.selected, 'row')} added", *written.remarks.format_lines()]
    repeats = f", and {written.repeats:,} that ask the same as one of them" if written.repeats else ""
    rows = f"{target_path}: {written.different_rows:,} of {manifest_rows:,} rows{repeats}"
    if written.selected < written.rows:
        rows += f"; of these, {written.selected:,} match --where and are exported"
    return [rows, *written.remarks.format_lines()]
