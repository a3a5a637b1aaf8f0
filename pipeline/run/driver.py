"""A job -> answers on disk and an exit code: plan, run, count, reconcile, report.

Nothing is inferred from the absence of an exception: at the end the output is listed again, chunks that are not
there are run once more, and what is still missing makes the exit code say so.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version

from pipeline.context import RunContext
from pipeline.errors import ExitCode, JobError, OutputError, StoppedError
from pipeline.job.spec import Job
from pipeline.manifest.chunks import Chunk
from pipeline.manifest.files import ManifestFile, list_manifest_files
from pipeline.output.commit import CommitReceipt, read_receipt
from pipeline.output.dataset import Dataset, write_run_document
from pipeline.output.store import OutputStore
from pipeline.run import local, log, preflight, resume, retry_errors
from pipeline.run.lease import Lease
from pipeline.run.progress import Progress, Say
from pipeline.run.signals import StopSignals

LeasedRunner = Callable[[RunContext, Sequence[Chunk]], Generator[CommitReceipt, None, None]]
ChunkRunner = Callable[[RunContext, Sequence[Chunk], StopSignals], Iterator[CommitReceipt]]


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What a person asks of one run, beside the job."""

    row_limit: int | None = None  # only so many rows of the manifest
    in_process: bool = False  # in this process, else on Ray
    allow_other_questions: bool = False  # another question may be put to the same output
    take_over: bool = False  # from a run that holds the output
    retry_kind: str | None = None  # failed rows of this kind once more; empty: of any kind
    show_ray_log: bool = False  # Ray's own log, too


def run_job(job: Job, options: RunOptions = RunOptions(), *, say: Say | None = None) -> int:
    """Run a job to its end. Returns the exit code. `say` takes the lines that otherwise go to the terminal."""
    with Progress(job.name, say=say, live_disabled=options.show_ray_log) as progress:
        return run_with_progress(job, options, progress)


def run_with_progress(job: Job, options: RunOptions, progress: Progress) -> int:
    manifest = list_manifest_files(job)
    work = preflight.build_run_context(job, manifest)
    log.set_run_labels(work)
    if problems := preflight.find_job_problems(work, manifest[:1]):  # before anything is started
        raise JobError("\n".join(problems))
    if caution := preflight.format_warnings(work):
        progress.say(f"careful: {caution}")
    store = preflight.open_output_store(work, allow_other_questions=options.allow_other_questions)
    lease = Lease(store, work.fingerprint, work.run_id, say=progress.say, take_over=options.take_over)
    with StopSignals(progress.say) as signals, lease:
        work = replace(work, lease_epoch=lease.epoch)
        write_run_document(store, work.run_id, "job", work.job.model_dump_json(indent=2, by_alias=True))
        lease.wait_for_late_commits()
        plan = partial(plan_run, work, manifest, store, options)
        if options.in_process:
            todo = plan(resume.split_in_process, progress.say)
            return run_to_completion(work, todo, store, guard_with_lease(local.run, lease, signals), progress)
        from pipeline.cluster import metrics, ray_runner  # Ray takes seconds to import; a plain loop does not need it

        # signals again, for Ray's native code installs a handler of its own
        with ray_runner.connect_to_ray(show_ray_log=options.show_ray_log), StopSignals(progress.say) as signals:
            metrics.export_lease_age(work, lease)
            cutter = (
                ray_runner.split_on_cluster if options.row_limit is None else resume.split_in_process
            )  # a trial cuts what it needs
            todo = plan(cutter, progress.say)
            return run_to_completion(
                work,
                todo,
                store,
                guard_with_lease(
                    partial(ray_runner.run, on_rows_in_flight=progress.set_rows_in_flight), lease, signals
                ),
                progress,
            )


def plan_run(
    context: RunContext,
    manifest_files: Sequence[ManifestFile],
    store: OutputStore,
    options: RunOptions,
    splitter: resume.ManifestSplitter,
    say: Say,
) -> resume.ResumePlan:
    """What there is to do; told to whoever asks how far it is, also where this run dies."""
    todo = resume.build_resume_plan(context, manifest_files, store, splitter=splitter, row_limit=options.row_limit)
    where = retry_errors.find_retry_scope(todo, context, store)
    said = {"fingerprint": context.fingerprint, "rows": todo.rows, "rows_left": todo.rows_left}
    if options.row_limit is None:  # of a part of the manifest nothing follows for the rest
        said |= {"gone": where.removed_chunks, "since": where.later_parts}
    write_run_document(store, context.run_id, "plan", json.dumps(said))
    if options.retry_kind is None:
        return todo
    return retry_errors.add_retries(
        todo, where, list(retry_errors.read_failed_rows(where, store, context.fingerprint)), options.retry_kind, say
    )


def guard_with_lease(runner: ChunkRunner, lease: Lease, signals: StopSignals) -> LeasedRunner:
    """A runner that ends when its output is another's."""

    def run(work: RunContext, chunks: Sequence[Chunk]) -> Generator[CommitReceipt, None, None]:
        for receipt in runner(work, chunks, signals):
            lease.raise_if_taken_over()
            yield receipt

    return run


def run_to_completion(
    context: RunContext, resume_plan: resume.ResumePlan, store: OutputStore, runner: LeasedRunner, progress: Progress
) -> int:
    duplicates = f", {resume_plan.duplicate_rows:,} asked twice and answered once" if resume_plan.duplicate_rows else ""
    before = (
        f", {resume_plan.rows - resume_plan.rows_left:,} done before"
        if resume_plan.rows > resume_plan.rows_left
        else ""
    )
    left_over = f"{resume_plan.rows_left:,} to do in {len(resume_plan.remaining_chunks):,} chunk{'s' * (len(resume_plan.remaining_chunks) != 1)}"
    progress.say(f"{context.job.name}: {resume_plan.rows:,} rows{duplicates}{before}; {left_over}")
    progress.start(resume_plan.rows_left)
    status = "stopped"
    try:
        left: Sequence[Chunk] = resume_plan.remaining_chunks
        for _ in range(2):  # whatever was lost on the way gets a second chance
            if left:
                run_chunks(context, left, runner, progress)
                left = find_missing_chunks(context, left, store)
                count_lost_receipts(context, resume_plan, left, store, progress)
        status = "missing" if left else "done"
    except OutputError as error:
        store.retries_enabled = False  # whoever could not commit has waited long enough
        raise StoppedError(f"stopped: {error}") from error
    finally:
        write_run_report(context, resume_plan, progress, status, store)
    retry_errors.delete_uncommitted_letters(resume_plan.remaining_chunks, context, store)
    dead = any(
        True
        for _ in retry_errors.read_failed_rows(
            retry_errors.find_retry_scope(resume_plan, context, store), store, context.fingerprint
        )
    )
    return print_summary(context, progress, sum(chunk.asked_row_count for chunk in left), dead)


def run_chunks(context: RunContext, chunks: Sequence[Chunk], runner: LeasedRunner, progress: Progress) -> None:
    with closing(runner(context, chunks)) as receipts:  # what ends it ends what it opened, before Ray ends
        for receipt in receipts:
            progress.add_receipt(receipt)
            log.write_commit_event(receipt)
            progress.totals.raise_if_error_rate_exceeded(context.job.limits.error_rate)


def find_missing_chunks(context: RunContext, chunks: Sequence[Chunk], store: OutputStore) -> list[Chunk]:
    parts = Dataset(store, context.fingerprint).list_parts()
    return [chunk for chunk in chunks if chunk.part_name not in parts]


def count_lost_receipts(
    context: RunContext,
    resume_plan: resume.ResumePlan,
    missing_chunks: Sequence[Chunk],
    store: OutputStore,
    progress: Progress,
) -> None:
    """Count chunks whose receipt was lost on the way: what they hold is read from them."""
    there = (
        {chunk.part_name for chunk in resume_plan.remaining_chunks}
        - {chunk.part_name for chunk in missing_chunks}
        - progress.totals.reported_parts
    )
    for name in sorted(there):
        progress.add_receipt(read_receipt(Dataset(store, context.fingerprint), name))


def print_summary(context: RunContext, progress: Progress, missing_rows: int, has_dead_letters: bool) -> int:
    """The last lines of a run, and its exit code."""
    path, tally = context.job.output.path, progress.totals
    last = progress.format_summary() if tally.done_rows else ""
    progress.stop_display()
    if last:
        progress.say(last)
    if cost := context.job.engine.compute_cost(tally.prompt_tokens, tally.output_tokens):
        progress.say(f"cost: {cost:,.4g} for the answers that came; what was asked again comes on top")
    if tally.cut_off:
        most = f"answer.max_new_tokens ({context.job.answer.max_new_tokens:,})"
        progress.say(f"cut off by {most}: {tally.cut_off:,} of these answers, whose column finish says length")
    if tally.failed:
        progress.say(tally.format_failure_reasons())
    progress.say(f"answers: {path}/data/fp={context.fingerprint}/*.parquet; see them: python -m pipeline report {path}")
    if has_dead_letters:
        why = "" if tally.failed else f"python -m pipeline status {path} says why; "
        letters = f"{path}/errors/fp={context.fingerprint}/*.parquet"
        progress.say(f"dead letters{' of earlier runs' if why else ''}: {letters}; {why}--retry-errors asks them again")
    if missing_rows:
        progress.say(f"{missing_rows:,} rows are neither answered nor failed; run the same command again")
        return ExitCode.INCOMPLETE
    if tally.failure_counts["internal/internal"]:
        return ExitCode.INTERNAL_ERROR
    return ExitCode.FAILED_ROWS if has_dead_letters else ExitCode.ALL_ANSWERED


def write_run_report(
    context: RunContext, resume_plan: resume.ResumePlan, progress: Progress, status: str, store: OutputStore
) -> None:
    """`runs/<id>/`: what was asked, and what came of it: rows = rows_before + answered + failed + missing."""
    tally = progress.totals
    counts = {
        "run": context.run_id,
        "status": status,
        "fingerprint": context.fingerprint,
        "rows": resume_plan.rows,
        "rows_before": resume_plan.rows - resume_plan.rows_left,
        "duplicates": resume_plan.duplicate_rows,
        "orphans": len(resume_plan.orphan_parts),  # parts of chunks that an earlier form of the manifest had
        "answered": tally.answered,
        "failed": tally.failed,
        "missing": resume_plan.rows_left - tally.done_rows,
        "kinds": dict(tally.failure_counts),
        "vision_tokens": tally.vision_tokens,
        "prompt_tokens": tally.prompt_tokens,
        "output_tokens": tally.output_tokens,
        "cut_off": tally.cut_off,
        "cost": context.job.engine.compute_cost(tally.prompt_tokens, tally.output_tokens),
        "seconds": round(progress.elapsed_s, 3),
        "workers_seconds": {name: round(each, 3) for name, each in tally.worker_seconds.items()},
        "versions": {name: version(name) for name in ("ray", "torch", "transformers", "pyarrow")}
        | {"python": platform.python_version()},
    }
    try:
        write_run_document(store, context.run_id, "report", json.dumps(counts, indent=2))
    except OutputError as error:
        progress.say(f"this run has no report: {error}")
