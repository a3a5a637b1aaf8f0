"""A job -> answers on disk and an exit code: plan, run, count, reconcile, report.

Nothing is inferred from the absence of an exception: at the end the output is listed again, chunks that are not
there are run once more, and what is still missing makes the exit code say so.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.metadata import version

from pipeline.errors import JobError
from pipeline.flow import Work
from pipeline.intake.manifest import Chunk, files
from pipeline.job import Job
from pipeline.output.write import Receipt, Store
from pipeline.run import brief, local, log, resume
from pipeline.run.progress import Progress, Say
from pipeline.run.signals import Signals
from pipeline.run.tally import Tally

ANSWERED, INTERNAL, FAILED_ROWS, MISSING = 0, 1, 3, 4  # exit codes; 2 is a job that cannot run

Runner = Callable[[Work, Sequence[Chunk]], Iterator[Receipt]]


def run(job: Job, *, limit: int | None = None, here: bool = False, add: bool = False, say: Say | None = None) -> int:
    """Run a job to its end; `here` in this process, else on Ray. Returns the exit code.

    `say` takes the lines that otherwise go to the terminal.
    """
    with Progress(job.name, say=say) as progress:
        return start(job, progress, limit=limit, here=here, add=add)


def start(job: Job, progress: Progress, *, limit: int | None, here: bool, add: bool) -> int:
    found = files(job)
    shared = brief.work(job, found)
    log.belong(shared)
    if problems := brief.problems(shared, found[:1]):  # before anything is started
        raise JobError("\n".join(problems))
    if caution := brief.caution(shared):
        progress.say(f"careful: {caution}")
    store = brief.open_output(shared, add=add)
    if here:
        with Signals(progress.say) as signals:
            todo = resume.plan(shared, found, store, limit=limit)
            return finish(shared, todo, store, partial(local.run, signals=signals), progress)
    from pipeline.run import cluster  # Ray takes seconds to import; a plain loop does not need it

    cluster.start()
    try:
        with Signals(progress.say) as signals:
            todo = resume.plan(shared, found, store, cutter=cluster.cut_there, limit=limit)
            return finish(shared, todo, store, partial(cluster.run, signals=signals), progress)
    finally:
        cluster.stop()


def finish(work: Work, todo: resume.Plan, store: Store, runner: Runner, progress: Progress) -> int:
    duplicates = f", {todo.duplicates:,} asked twice and answered once" if todo.duplicates else ""
    before = f", {todo.rows - todo.rows_left:,} done before" if todo.rows > todo.rows_left else ""
    left_over = f"{todo.rows_left:,} to do in {len(todo.left):,} chunks"
    progress.say(f"{work.job.name}: {todo.rows:,} rows{duplicates}{before}; {left_over}")
    progress.begin(todo.rows_left)
    status = "stopped"
    try:
        left: Sequence[Chunk] = todo.left
        for _ in range(2):  # whatever was lost on the way gets a second chance
            follow(work, left, runner, progress)
            left = missing(work, left, store)
            if not left:
                break
        status = "missing" if left else "done"
    finally:
        report(work, todo, progress.tally, progress.seconds, status, store)
    letters = {name.rpartition("-")[0] for name in store.names(f"errors/fp={work.fingerprint}")}
    dead = progress.tally.failed or any(chunk.name in letters for chunk in todo.chunks)
    return conclude(work, progress, sum(chunk.rows for chunk in left), bool(dead))


def follow(work: Work, left: Sequence[Chunk], runner: Runner, progress: Progress) -> None:
    for receipt in runner(work, left) if left else ():
        progress.add(receipt)
        log.committed(receipt)
        progress.tally.stop_if_hopeless(work.job.limits.error_rate)


def missing(work: Work, chunks: Sequence[Chunk], store: Store) -> list[Chunk]:
    there = store.names(f"data/fp={work.fingerprint}")
    return [chunk for chunk in chunks if f"{chunk.name}.parquet" not in there]


def conclude(work: Work, progress: Progress, lost: int, dead: bool) -> int:
    """The last lines of a run, and its exit code."""
    path, tally = work.job.output.path, progress.tally
    last = progress.last_line() if tally.done else ""
    progress.end()
    if last:
        progress.say(last)
    if tally.failed:
        progress.say(tally.reasons())
    progress.say(f"answers: {path}/data/fp={work.fingerprint}/*.parquet")
    if dead:
        progress.say(f"dead letters: {path}/errors/fp={work.fingerprint}/*.parquet")
    if lost:
        progress.say(f"{lost:,} rows are neither answered nor failed; run the same command again")
        return MISSING
    return INTERNAL if tally.kinds["internal/internal"] else FAILED_ROWS if dead else ANSWERED


def report(work: Work, todo: resume.Plan, tally: Tally, seconds: float, status: str, store: Store) -> None:
    """`runs/<id>/`: what was asked, and what came of it."""
    counts = {
        "run": work.run,
        "status": status,
        "fingerprint": work.fingerprint,
        "rows": todo.rows,
        "rows_before": todo.rows - todo.rows_left,
        "duplicates": todo.duplicates,
        "answered": tally.answered,
        "failed": tally.failed,
        "kinds": dict(tally.kinds),
        "vision_tokens": tally.vision_tokens,
        "output_tokens": tally.output_tokens,
        "seconds": round(seconds, 3),
        "workers_seconds": {name: round(each, 3) for name, each in tally.seconds.items()},
        "versions": {name: version(name) for name in ("ray", "torch", "transformers", "pyarrow")}
        | {"python": platform.python_version()},
    }
    store.create(f"runs/{work.run}/job.json", work.job.model_dump_json(indent=2, by_alias=True).encode())
    store.create(f"runs/{work.run}/report.json", json.dumps(counts, indent=2).encode())
