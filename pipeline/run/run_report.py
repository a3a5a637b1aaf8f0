"""What a run says about itself: the first line, the last lines with the exit code, and `report.json`."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator
from importlib.metadata import version

from pipeline.command_text import format_command, shorten_path
from pipeline.context import RunContext
from pipeline.errors import ExitCode, OutputError
from pipeline.fetch.stores import list_stores
from pipeline.job.spec import Job
from pipeline.manifest.chunk_table import ChunkTable
from pipeline.output.dataset import Dataset, write_run_document
from pipeline.output.part_index import read_footers
from pipeline.output.part_listing import PartListing
from pipeline.output.store import OutputStore
from pipeline.run.progress import Progress, format_count, format_duration
from pipeline.run.resume import ResumePlan
from pipeline.run.shards import Shard, count_rows_by_shard
from pipeline.run.tally import LATE_STEP, RunTotals

REPORTED_PACKAGES = ("ray", "torch", "transformers", "pyarrow")


def describe_plan(job_name: str, plan: ResumePlan, shard: Shard | None = None) -> str:
    duplicates = f", {plan.duplicate_rows:,} more that ask the same and share an answer" if plan.duplicate_rows else ""
    done_before = f", {plan.rows - plan.rows_left:,} done before" if plan.rows > plan.rows_left else ""
    remaining = f"{plan.rows_left:,} to do in {format_count(len(plan.remaining_chunks), 'chunk')}"
    labelled = f", {plan.labelled_rows:,} more that --except leaves out" if plan.labelled_rows else ""
    name = f"{job_name}, shard {shard}" if shard else job_name
    return f"{name}: {format_count(plan.rows, 'row')}{duplicates}{labelled}{done_before}; {remaining}"


def describe_shards(plan: ResumePlan, shard: Shard, dataset: Dataset) -> str:
    """What the other shards have left, from the parts that there are now."""
    parts = dataset.list_parts()
    others = plan.other_chunks.select(~parts.hold(plan.other_chunks.part_names))
    left = count_rows_by_shard(others, shard.total)
    if not any(left):
        return f"the other shards of {shard.total} are done, too"
    names = ", ".join(f"{number}/{shard.total}" for number, rows in enumerate(left, 1) if rows)
    return f"{format_count(sum(left), 'row')} of other shards left: {names}"


def print_summary(
    context: RunContext,
    dataset: Dataset,
    progress: Progress,
    parts: PartListing,
    missing_chunks: ChunkTable,
    has_dead_letters: bool,
) -> ExitCode:
    """`parts` are those of the question, of earlier runs, too."""
    job, totals, say = context.job, progress.totals, progress.say
    summary = progress.format_summary() if totals.done_rows else None
    progress.stop_display()
    if summary:
        say(summary)
    if totals.discarded_tokens.output:
        discarded = f"{totals.discarded_tokens.output:,} of {totals.tokens.output:,} output tokens"
        say(f"{discarded} are in replies that could not be used")
    if cost := job.engine.compute_cost(totals.tokens.prompt, totals.tokens.output):
        say(f"cost: {cost:,.4g} for all replies")
    if totals.cut_off:
        limit = f"answer.max_new_tokens ({job.answer.max_new_tokens:,})"
        say(f"cut off by {limit}: {totals.cut_off:,} of these answers, whose column finish says length")
    for line in describe_late_preparation(totals):
        say(line)
    if totals.failed:
        say(totals.format_failure_reasons())
    output = shorten_path(job.output.path)
    has_answers = totals.answered or any(footer.row_count for _, footer in read_footers(dataset, parts))
    if has_answers:
        say(f"answers: {shorten_path(dataset.parts_path)}")
    if has_dead_letters:
        of_earlier_runs = "" if totals.failed else " of earlier runs"
        reasons = "" if totals.failed else f"{format_command('status', output)} says why; "
        path = shorten_path(dataset.dead_letters_path)
        say(f"dead letters{of_earlier_runs}: {path}; {reasons}--retry-errors asks them again")
    if missing_rows := missing_chunks.asked_row_count:
        say(f"{missing_rows:,} rows are neither answered nor failed; run the same command again")
    say(f"next: {format_report_command(job) if has_answers else format_command('status', output)}")
    return choose_exit_code(totals, missing_rows, has_dead_letters)


def describe_late_preparation(totals: RunTotals) -> Iterator[str]:
    if late_s := totals.worker_seconds[LATE_STEP]:
        why = "because some chunks weigh more than 512 MiB; another output with a smaller output.chunk_rows avoids it"
        yield f"replicas spent {format_duration(late_s)} on preparing rows, {why}"


def format_report_command(job: Job) -> str:
    """With the places of media that the rows of this job may name: a report reads no others."""
    own_stores = list_stores([job.output.path])
    places = {
        "--roots": map(shorten_path, job.input.roots),
        "--hosts": job.input.hosts,
        "--stores": [store for store in job.input.stores if store not in own_stores],
    }
    options = [word for option, values in places.items() for value in values for word in (option, value)]
    return format_command("report", shorten_path(job.output.path), *options)


def choose_exit_code(totals: RunTotals, missing_rows: int, has_dead_letters: bool) -> ExitCode:
    if missing_rows:
        return ExitCode.INCOMPLETE
    if totals.failure_counts["internal/internal"]:
        return ExitCode.INTERNAL_ERROR
    return ExitCode.FAILED_ROWS if has_dead_letters else ExitCode.ALL_ANSWERED


def write_run_report(
    context: RunContext,
    plan: ResumePlan,
    progress: Progress,
    status: str,
    store: OutputStore,
    shard: Shard | None = None,
) -> None:
    """Write `report.json`. In it, rows = rows_before + answered + failed + missing."""
    totals = progress.totals
    values = {
        "run": context.run_id,
        "status": status,
        **({"shard": shard} if shard else {}),
        "fingerprint": context.fingerprint,
        "rows": plan.rows,
        "rows_before": plan.rows - plan.rows_left,
        "duplicates": plan.duplicate_rows,
        "labelled": plan.labelled_rows,
        "orphans": len(plan.orphans.parts),
        "answered": totals.answered,
        "failed": totals.failed,
        "missing": plan.rows_left - totals.done_rows,
        "kinds": dict(totals.failure_counts),
        "vision_tokens": totals.tokens.vision,
        "prompt_tokens": totals.tokens.prompt,
        "output_tokens": totals.tokens.output,
        "discarded_tokens": totals.discarded_tokens._asdict(),
        "cut_off": totals.cut_off,
        "cost": context.job.engine.compute_cost(totals.tokens.prompt, totals.tokens.output),
        "seconds": round(progress.elapsed_s, 3),
        "workers_seconds": {step: round(seconds, 3) for step, seconds in totals.worker_seconds.items()},
        "versions": {name: version(name) for name in REPORTED_PACKAGES} | {"python": platform.python_version()},
    }
    try:
        write_run_document(store, context.run_id, "report", json.dumps(values, indent=2))
    except OutputError as error:
        progress.say(f"this run has no report: {error}")
