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

from pipeline.context import Work
from pipeline.errors import JobError, OutputError, StoppedError
from pipeline.job.spec import Job
from pipeline.manifest.chunks import Chunk
from pipeline.manifest.files import File, files
from pipeline.output.commit import Receipt, found
from pipeline.output.store import Store
from pipeline.run import local, log, preflight, resume, retry_errors
from pipeline.run.lease import Lease
from pipeline.run.progress import Progress, Say
from pipeline.run.signals import Signals

ANSWERED, INTERNAL, FAILED_ROWS, MISSING = 0, 1, 3, 4  # exit codes; 2 is a job that cannot run

Runner = Callable[[Work, Sequence[Chunk]], Generator[Receipt, None, None]]
Pool = Callable[[Work, Sequence[Chunk], Signals], Iterator[Receipt]]


@dataclass(frozen=True, slots=True)
class Options:
    """What a person asks of one run, beside the job."""

    limit: int | None = None  # only so many rows of the manifest
    here: bool = False  # in this process, else on Ray
    add: bool = False  # another question may be put to the same output
    take_over: bool = False  # from a run that holds the output
    retry: str | None = None  # failed rows of this kind once more; empty: of any kind
    loud: bool = False  # Ray's own log, too


def run(job: Job, options: Options = Options(), *, say: Say | None = None) -> int:
    """Run a job to its end. Returns the exit code. `say` takes the lines that otherwise go to the terminal."""
    with Progress(job.name, say=say, still=options.loud) as progress:
        return start(job, options, progress)


def start(job: Job, options: Options, progress: Progress) -> int:
    manifest = files(job)
    work = preflight.work(job, manifest)
    log.belong(work)
    if problems := preflight.problems(work, manifest[:1]):  # before anything is started
        raise JobError("\n".join(problems))
    if caution := preflight.caution(work):
        progress.say(f"careful: {caution}")
    store = preflight.open_output(work, add=options.add)
    lease = Lease(store, work.fingerprint, work.run, say=progress.say, take_over=options.take_over)
    with Signals(progress.say) as signals, lease:
        work = replace(work, epoch=lease.epoch)
        store.create(f"runs/{work.run}/job.json", work.job.model_dump_json(indent=2, by_alias=True).encode())
        lease.settle()
        plan = partial(planned, work, manifest, store, options)
        if options.here:
            todo = plan(resume.cut_here, progress.say)
            return finish(work, todo, store, held(local.run, lease, signals), progress)
        from pipeline.cluster import metrics, ray_runner  # Ray takes seconds to import; a plain loop does not need it

        # signals again, for Ray's native code installs a handler of its own
        with ray_runner.joined(loud=options.loud), Signals(progress.say) as signals:
            metrics.watch_lease(work, lease)
            cutter = ray_runner.cut_there if options.limit is None else resume.cut_here  # a trial cuts what it needs
            todo = plan(cutter, progress.say)
            return finish(
                work, todo, store, held(partial(ray_runner.run, watch=progress.watch), lease, signals), progress
            )


def planned(
    work: Work, manifest: Sequence[File], store: Store, options: Options, cutter: resume.Cutter, say: Say
) -> resume.Plan:
    """What there is to do; told to whoever asks how far it is, also where this run dies."""
    todo = resume.plan(work, manifest, store, cutter=cutter, limit=options.limit)
    where = retry_errors.scope(todo, work, store)
    said = {"fingerprint": work.fingerprint, "rows": todo.rows, "rows_left": todo.rows_left}
    if options.limit is None:  # of a part of the manifest nothing follows for the rest
        said |= {"gone": where.gone, "since": where.since}
    store.create(f"runs/{work.run}/plan.json", json.dumps(said).encode())
    if options.retry is None:
        return todo
    return retry_errors.with_retries(
        todo, where, list(retry_errors.wrong(where, store, work.fingerprint)), options.retry, say
    )


def held(pool: Pool, lease: Lease, signals: Signals) -> Runner:
    """A runner that ends when its output is another's."""

    def run(work: Work, chunks: Sequence[Chunk]) -> Generator[Receipt, None, None]:
        for receipt in pool(work, chunks, signals):
            lease.check()
            yield receipt

    return run


def finish(work: Work, todo: resume.Plan, store: Store, runner: Runner, progress: Progress) -> int:
    duplicates = f", {todo.duplicates:,} asked twice and answered once" if todo.duplicates else ""
    before = f", {todo.rows - todo.rows_left:,} done before" if todo.rows > todo.rows_left else ""
    left_over = f"{todo.rows_left:,} to do in {len(todo.left):,} chunk{'s' * (len(todo.left) != 1)}"
    progress.say(f"{work.job.name}: {todo.rows:,} rows{duplicates}{before}; {left_over}")
    progress.begin(todo.rows_left)
    status = "stopped"
    try:
        left: Sequence[Chunk] = todo.left
        for _ in range(2):  # whatever was lost on the way gets a second chance
            if left:
                follow(work, left, runner, progress)
                left = missing(work, left, store)
                unheard(work, todo, left, store, progress)
        status = "missing" if left else "done"
    except OutputError as error:
        store.patient = False  # whoever could not commit has waited long enough
        raise StoppedError(f"stopped: {error}") from error
    finally:
        report(work, todo, progress, status, store)
    retry_errors.sweep(todo.left, work, store)
    dead = any(True for _ in retry_errors.wrong(retry_errors.scope(todo, work, store), store, work.fingerprint))
    return conclude(work, progress, sum(chunk.asked for chunk in left), dead)


def follow(work: Work, left: Sequence[Chunk], runner: Runner, progress: Progress) -> None:
    with closing(runner(work, left)) as receipts:  # what ends it ends what it opened, before Ray ends
        for receipt in receipts:
            progress.add(receipt)
            log.committed(receipt)
            progress.tally.stop_if_hopeless(work.job.limits.error_rate)


def missing(work: Work, chunks: Sequence[Chunk], store: Store) -> list[Chunk]:
    there = store.names(f"data/fp={work.fingerprint}")
    return [chunk for chunk in chunks if f"{chunk.part}.parquet" not in there]


def unheard(work: Work, todo: resume.Plan, left: Sequence[Chunk], store: Store, progress: Progress) -> None:
    """Count chunks whose receipt was lost on the way: what they hold is read from them."""
    there = {chunk.part for chunk in todo.left} - {chunk.part for chunk in left} - progress.tally.names
    for name in sorted(there):
        progress.add(found(store, work.fingerprint, name))


def conclude(work: Work, progress: Progress, lost: int, dead: bool) -> int:
    """The last lines of a run, and its exit code."""
    path, tally = work.job.output.path, progress.tally
    last = progress.last_line() if tally.done else ""
    progress.end()
    if last:
        progress.say(last)
    if cost := work.job.cost(tally.prompt_tokens, tally.output_tokens):
        progress.say(f"cost: {cost:,.4g} for the answers that came; what was asked again comes on top")
    if tally.cut_off:
        most = f"answer.max_new_tokens ({work.job.answer.max_new_tokens:,})"
        progress.say(f"cut off by {most}: {tally.cut_off:,} of these answers, whose column finish says length")
    if tally.failed:
        progress.say(tally.reasons())
    progress.say(f"answers: {path}/data/fp={work.fingerprint}/*.parquet; see them: python -m pipeline report {path}")
    if dead:
        why = "" if tally.failed else f"python -m pipeline status {path} says why; "
        letters = f"{path}/errors/fp={work.fingerprint}/*.parquet"
        progress.say(f"dead letters{' of earlier runs' if why else ''}: {letters}; {why}--retry-errors asks them again")
    if lost:
        progress.say(f"{lost:,} rows are neither answered nor failed; run the same command again")
        return MISSING
    return INTERNAL if tally.kinds["internal/internal"] else FAILED_ROWS if dead else ANSWERED


def report(work: Work, todo: resume.Plan, progress: Progress, status: str, store: Store) -> None:
    """`runs/<id>/`: what was asked, and what came of it: rows = rows_before + answered + failed + missing."""
    tally = progress.tally
    counts = {
        "run": work.run,
        "status": status,
        "fingerprint": work.fingerprint,
        "rows": todo.rows,
        "rows_before": todo.rows - todo.rows_left,
        "duplicates": todo.duplicates,
        "orphans": len(todo.orphans),  # parts of chunks that an earlier form of the manifest had
        "answered": tally.answered,
        "failed": tally.failed,
        "missing": todo.rows_left - tally.done,
        "kinds": dict(tally.kinds),
        "vision_tokens": tally.vision_tokens,
        "prompt_tokens": tally.prompt_tokens,
        "output_tokens": tally.output_tokens,
        "cut_off": tally.cut_off,
        "cost": work.job.cost(tally.prompt_tokens, tally.output_tokens),
        "seconds": round(progress.seconds, 3),
        "workers_seconds": {name: round(each, 3) for name, each in tally.seconds.items()},
        "versions": {name: version(name) for name in ("ray", "torch", "transformers", "pyarrow")}
        | {"python": platform.python_version()},
    }
    try:
        store.create(f"runs/{work.run}/report.json", json.dumps(counts, indent=2).encode())
    except OutputError as error:
        progress.say(f"this run has no report: {error}")
