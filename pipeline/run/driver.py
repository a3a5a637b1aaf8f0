"""Runs a job: check it, lease the output, plan what is left, run that, reconcile and report.

A receipt says that a part is in the output. After the last receipt, the parts of the other chunks are looked for, and
missing chunks run once more; rows that are still missing have an exit code of their own.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace

import numpy as np

from pipeline.context import RunContext
from pipeline.errors import JobError, OutputError, StoppedError
from pipeline.job.spec import Job
from pipeline.manifest.chunk_table import ChunkTable
from pipeline.manifest.files import ManifestFile, list_manifest_files
from pipeline.manifest.hash_arrays import are_among
from pipeline.output.answer.confidence_maps import read_confidence_maps
from pipeline.output.commit import CommitReceipt, read_receipt
from pipeline.output.dataset import Dataset, NotedChunkSize, write_run_document
from pipeline.output.part_index import IndexWriter
from pipeline.registry import RUNNERS, load_registered
from pipeline.run import log, preflight, resume, retry_errors, run_report
from pipeline.run.attempts import number_attempt
from pipeline.run.budget import Budget
from pipeline.run.chunk_size import settle_chunk_size
from pipeline.run.lease import Lease, raise_if_taken_over
from pipeline.run.log import Say
from pipeline.run.orphans import find_superfluous_parts
from pipeline.run.progress import Progress
from pipeline.run.resume import ResumePlan
from pipeline.run.retry_errors import RetryScope
from pipeline.run.runner import Runner
from pipeline.run.shards import Shard, count_rows_by_shard, hash_chunks, narrow_plan
from pipeline.run.signals import StopSignals
from pipeline.truth.job_truth import read_labelled_ids
from pipeline.types import ConfidenceMaps

MAX_PASSES = 2  # over the chunks: the second one runs those that were lost in the first


@dataclass(frozen=True, slots=True)
class RunOptions:
    """The choices of one run that are not part of the job."""

    runner: str = "ray"  # a name in registry.RUNNERS
    row_limit: int | None = None  # run only the first rows of the manifest
    shard: Shard | None = None  # the part of the manifest that this run works on, beside other runs
    allow_other_questions: bool = False  # the output may hold answers to other questions
    take_over: bool = False  # take the output from a run that holds it
    retry_kind: str | None = None  # ask failed rows of this kind again; empty: of any kind
    show_ray_log: bool = False
    labelled_rows: str | None = None  # a table of truths, whose rows are not asked


@dataclass(frozen=True, slots=True)
class ActiveRun:
    """A run that holds the lease on its output and is connected to its runner."""

    context: RunContext
    dataset: Dataset
    lease: Lease
    runner: Runner
    signals: StopSignals
    progress: Progress
    budget: Budget
    index: IndexWriter


def run_job(job: Job, options: RunOptions = RunOptions(), *, say: Say | None = None) -> int:
    """Run a job to its end. Returns the exit code. `say` takes the lines that otherwise go to the terminal."""
    with (
        Progress(job.name, say=say, live_disabled=options.show_ray_log) as progress,
        log.show_storage_waits(progress.say),
    ):
        manifest_files = list_manifest_files(job, progress.say)
        context = check_job(job, manifest_files, progress.say, options.shard)
        store = preflight.open_output_store(context, allow_other_questions=options.allow_other_questions)
        dataset = Dataset(store, context.fingerprint)
        runner: Runner = load_registered(RUNNERS, options.runner, "runner")()
        lease = Lease(dataset, context.run_id, say=progress.say, take_over=options.take_over, shard=options.shard)
        with StopSignals(progress.say), lease:
            context = replace(
                context, lease_epoch=lease.epoch, confidence_maps=read_calibration(context, dataset, progress.say)
            )
            lease.wait_for_late_commits()
            chunk_size = settle_chunk_size(context, manifest_files, dataset)
            if chunk_size.is_unusual:
                progress.say(f"{chunk_size.describe()}; output.chunk_rows sets another number")
            context = chunk_size.apply_to(context)
            # Ray's native code installs signal handlers as it starts, so ours are installed once more after it.
            with runner.connect(show_log=options.show_ray_log), StopSignals(progress.say) as signals:
                budget = Budget(context.job, dataset, progress.say, options.shard)
                index = IndexWriter(dataset, context.run_id)
                run = ActiveRun(context, dataset, lease, runner, signals, progress, budget, index)
                runner.export_lease_age(context, lease)
                plan = plan_run(run, manifest_files, options)
                missing_chunks = run_plan(run, plan)
                plan = replace(plan, parts=plan.parts.add(progress.totals.committed_parts.list_parts()))
                dead_letters = dataset.list_dead_letters()
                retry_errors.delete_uncommitted_letters(plan, missing_chunks, dead_letters, dataset)
                has_dead_letters = retry_errors.has_failed_rows(plan, dead_letters, dataset, options.shard)
                index.add_missing_parts(plan.parts)
                index.flush_all()
                index.merge_small_summaries()
                if options.shard:
                    progress.say(run_report.describe_shards(plan, options.shard, dataset))
                return run_report.print_summary(
                    context, dataset, progress, plan.parts, missing_chunks, has_dead_letters
                )


def check_job(job: Job, manifest_files: Sequence[ManifestFile], say: Say, shard: Shard | None = None) -> RunContext:
    """Raise a JobError that lists all problems, before anything is started."""
    context = preflight.build_run_context(job, manifest_files)
    if shard:  # runs on shards often start at the same moment
        context = replace(context, run_id=f"{context.run_id}-s{shard.number}")
    log.set_run_labels(context)
    preflight.require_rows(job, manifest_files)
    if problems := preflight.find_job_problems(context, manifest_files[:1]):
        raise JobError("\n".join(problems))
    for warning in preflight.find_warnings(context):
        say(f"careful: {warning}")
    return context


def read_calibration(context: RunContext, dataset: Dataset, say: Say) -> ConfidenceMaps:
    """What answer.review_below needs, once for all workers."""
    maps = read_confidence_maps(dataset) if context.job.answer.review_below is not None else {}
    if maps:
        say(f"answer.review_below: the newest score calibrates the confidences of {', '.join(maps)}")
    return maps


def plan_run(run: ActiveRun, manifest_files: Sequence[ManifestFile], options: RunOptions) -> ResumePlan:
    """Plan what is left, with retries if they are asked for."""
    labelled_ids = read_labelled_ids(options.labelled_rows, run.context) if options.labelled_rows else None
    plan = resume.build_resume_plan(
        run.context,
        manifest_files,
        run.dataset,
        # A limited run splits only the files that it needs, so it does not start workers for that.
        splitter=run.runner.split_manifest if options.row_limit is None else resume.split_in_process,
        row_limit=options.row_limit,
        labelled_ids=labelled_ids,
        index=run.index,
    )
    run.lease.check_same_chunks(
        hash_chunks(plan.chunks, options.row_limit, None if labelled_ids is None else labelled_ids.tolist())
    )
    write_question(run)
    superfluous_parts, repeats_rows = find_superfluous_parts(plan.orphans, run.dataset)
    if options.shard:  # other runs may be reading them
        superfluous_parts, repeats_rows = [], plan.orphans.are_repeated
    delete_superfluous_parts(run, superfluous_parts)
    plan = replace(plan, parts=plan.parts.remove(superfluous_parts))
    retry_scope = retry_errors.find_retry_scope(plan, run.dataset.list_dead_letters(), run.dataset)
    write_plan(run, plan, options, retry_scope, repeats_rows=repeats_rows)
    if options.shard:
        plan = narrow_plan(plan, options.shard)
    if options.retry_kind is not None:
        own_scope = retry_scope.narrow(plan, options.shard)
        say = run.progress.say
        plan = retry_errors.add_retries(plan, own_scope, run.dataset, options.retry_kind, say, labelled_ids)
    for warning in resume.find_plan_warnings(run.context, plan, run.dataset, options.labelled_rows):
        run.progress.say(f"careful: {warning}")
    run.progress.say(run_report.describe_plan(run.context.job.name, plan, options.shard))
    return plan


def write_question(run: ActiveRun) -> None:
    """What the run asks. A run that is refused leaves none, so it is written late."""
    job = run.context.job
    chunk_size = NotedChunkSize(job.output.chunk_rows, job.output.slice_rows)
    run.dataset.write_question(run.context.fingerprint_inputs, chunk_size)
    job_text = job.model_dump_json(indent=2, by_alias=True)
    write_run_document(run.dataset.store, run.context.run_id, "job", job_text)


def write_plan(
    run: ActiveRun, plan: ResumePlan, options: RunOptions, retry_scope: RetryScope, *, repeats_rows: bool
) -> None:
    """The plan.json that `status` reads, even if the run dies."""
    submission = run.runner.describe_submission()
    attempt = number_attempt(run.dataset.store, submission)
    values = {
        "fingerprint": run.context.fingerprint,
        "rows": plan.rows,
        "rows_left": plan.rows_left,
        "epoch": run.lease.epoch,
        "parts": len(plan.parts),
        "repeats_rows": repeats_rows,
        "labelled": plan.labelled_rows,
        **submission,
        **attempt,
    }
    if options.row_limit is None:  # the first rows of a manifest do not tell which chunks were removed
        values |= {"gone": retry_scope.removed_chunks, "since": list(retry_scope.later_parts)}
    if options.shard:
        rows_left = count_rows_by_shard(plan.remaining_chunks, options.shard.total)
        values |= {"shard": options.shard, "rows_left_by_shard": rows_left}
    write_run_document(run.dataset.store, run.context.run_id, "plan", json.dumps(values))
    if attempt:
        run.progress.say(f"attempt {attempt['attempt']} of RayJob {submission['ray_job']}")


def delete_superfluous_parts(run: ActiveRun, parts: Sequence[str]) -> None:
    """Delete the parts whose rows are all in other parts, too."""
    if parts:
        why = "a run that was taken over committed late, and other parts hold the same rows"
        run.progress.say(f"deleted {len(parts):,} part{'s' * (len(parts) != 1)} of data/: {why}")
    for part in parts:
        raise_if_taken_over(run.dataset, run.lease.epoch)
        run.dataset.delete_part(part)


def run_plan(run: ActiveRun, plan: ResumePlan) -> ChunkTable:
    """Run the chunks that are left. Returns those that are still missing. Every run writes its report."""
    run.progress.start(plan.rows_left)
    status = "stopped"
    try:
        missing_chunks = plan.remaining_chunks
        for _ in range(MAX_PASSES):
            if missing_chunks:
                run.budget.raise_if_spent()
                run_chunks(run, missing_chunks)
                missing_chunks = find_missing_chunks(run, missing_chunks)
                add_lost_receipts(run, plan, missing_chunks)
        status = "missing" if missing_chunks else "done"
        return missing_chunks
    except OutputError as error:
        run.dataset.store.retries_enabled = False  # the commit has been retried long enough; the report must not be
        raise StoppedError(f"stopped: {error}") from error
    finally:
        if status == "stopped":
            count_unreported_chunks(run, plan)
        run.index.flush_all()
        run_report.write_run_report(run.context, plan, run.progress, status, run.dataset.store, run.budget.shard)


def count_unreported_chunks(run: ActiveRun, plan: ResumePlan) -> None:
    """A run that is stopped does not wait for the receipts of chunks that were just committed."""
    with suppress(OutputError, StoppedError):
        raise_if_taken_over(run.dataset, run.lease.epoch)
        add_lost_receipts(run, plan, find_missing_chunks(run, plan.remaining_chunks))


def run_chunks(run: ActiveRun, chunks: ChunkTable) -> None:
    receipts = run.runner.run_chunks(run.context, chunks, run.signals, run.progress.show_work)
    with closing(receipts):  # the workers end before Ray does
        for receipt in receipts:
            run.lease.raise_if_taken_over()
            take_receipt(run, receipt)
            totals = run.progress.totals
            totals.raise_if_error_rate_exceeded(run.context.job.limits.error_rate)
            if totals.done_rows < run.progress.total_rows and (reason := run.budget.find_spent_limit(totals)):
                run.signals.request_stop(reason)


def find_missing_chunks(run: ActiveRun, chunks: ChunkTable) -> ChunkTable:
    """The chunks without a receipt whose part is not in the output either."""
    unreported = select_unreported(run, chunks)
    return unreported.select(~run.dataset.find_parts(unreported.part_names)) if unreported else unreported


def add_lost_receipts(run: ActiveRun, plan: ResumePlan, missing_chunks: ChunkTable) -> None:
    """Count chunks that were committed but whose receipt never arrived, from their parts."""
    unreported = select_unreported(run, plan.remaining_chunks)
    are_missing = are_among(unreported.part_names, np.sort(missing_chunks.part_names))
    for chunk in unreported.select(~are_missing):
        take_receipt(run, read_receipt(run.dataset, chunk.part_name))


def select_unreported(run: ActiveRun, chunks: ChunkTable) -> ChunkTable:
    return chunks.select(~run.progress.totals.committed_parts.list_parts().hold(chunks.part_names))


def take_receipt(run: ActiveRun, receipt: CommitReceipt) -> None:
    run.progress.add_receipt(receipt)
    run.index.add_part(receipt.part_name, receipt.part_info, receipt.answered, receipt.note, receipt.row_hashes)
    log.write_commit_event(receipt)
