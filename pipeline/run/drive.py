"""A job -> answers on disk and an exit code: plan, run, count, reconcile, report.

Nothing is inferred from the absence of an exception: at the end the output is listed again, chunks that are not
there are run once more, and what is still missing makes the exit code say so.
"""

from __future__ import annotations

import json
import platform
import signal
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from types import FrameType

from pipeline.errors import JobError, StoppedError, Terminated
from pipeline.flow import Work
from pipeline.intake.manifest import Chunk, files
from pipeline.job import Job
from pipeline.output.write import Receipt, Store
from pipeline.run import brief, local, resume

ANSWERED, INTERNAL, FAILED_ROWS, MISSING = 0, 1, 3, 4  # exit codes; 2 is a job that cannot run
WINDOW, ENOUGH = 1000, 100  # rows that the error rate is of, and how many make it worth believing
EVERY_S = 5.0

Runner = Callable[[Work, Sequence[Chunk]], Iterator[Receipt]]
Say = Callable[[str], None]


@dataclass
class Tally:
    """What the receipts of a run add up to."""

    answered: int = 0
    failed: int = 0
    vision_tokens: int = 0
    output_tokens: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    window: deque[tuple[int, int]] = field(default_factory=deque)

    def add(self, receipt: Receipt) -> None:
        self.answered += receipt.answered
        self.failed += receipt.failed
        self.vision_tokens += receipt.vision_tokens
        self.output_tokens += receipt.output_tokens
        self.kinds.update(receipt.kinds)
        self.examples = {**receipt.examples, **self.examples}
        self.window.append((receipt.answered, receipt.failed))
        while sum(map(sum, self.window)) - sum(self.window[0]) >= WINDOW:
            self.window.popleft()

    def stop_if_hopeless(self, error_rate: float) -> None:
        answered, failed = (sum(column) for column in zip(*self.window, strict=True))
        if answered + failed >= ENOUGH and failed / (answered + failed) > error_rate:
            raise StoppedError(
                f"stopped: {failed} of the last {answered + failed} rows failed, more than limits.error_rate "
                f"({error_rate:g}) allows. The commonest reasons:\n{self.reasons()}"
            )

    def reasons(self) -> str:
        return "\n".join(
            f"  {count:>6}  {kind}: {self.examples.get(kind, '').strip().splitlines()[-1]}"
            for kind, count in self.kinds.most_common(3)
        )


def run(job: Job, *, limit: int | None = None, here: bool = False, add: bool = False, say: Say = print) -> int:
    """Run a job to its end; `here` in this process, else on Ray. Returns the exit code."""
    found = files(job)
    shared = brief.work(job, found)
    if problems := brief.problems(shared, found[:1]):  # before anything is started
        raise JobError("\n".join(problems))
    if caution := brief.caution(shared):
        say(f"careful: {caution}")
    store = brief.open_output(shared, add=add)
    if here:
        signal.signal(signal.SIGTERM, terminate)
        return finish(shared, resume.plan(shared, found, store, limit=limit), store, local.run, say)
    from pipeline.run import cluster  # Ray takes seconds to import; a plain loop does not need it

    cluster.start()
    signal.signal(signal.SIGTERM, terminate)  # after Ray, which installs a handler of its own
    try:
        todo = resume.plan(shared, found, store, cutter=cluster.cut_there, limit=limit)
        return finish(shared, todo, store, cluster.run, say)
    finally:
        cluster.stop()


def terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated


def finish(work: Work, todo: resume.Plan, store: Store, runner: Runner, say: Say) -> int:
    duplicates = f", {todo.duplicates:,} asked twice and answered once" if todo.duplicates else ""
    before = f", {todo.rows - todo.rows_left:,} done before" if todo.rows > todo.rows_left else ""
    left_over = f"{todo.rows_left:,} to do in {len(todo.left):,} chunks"
    say(f"{work.job.name}: {todo.rows:,} rows{duplicates}{before}; {left_over}")
    tally, started = Tally(), time.monotonic()
    status = "stopped"
    try:
        left: Sequence[Chunk] = todo.left
        for _ in range(2):  # whatever was lost on the way gets a second chance
            follow(work, left, todo.rows_left, runner, tally, say)
            left = missing(work, left, store)
            if not left:
                break
        status = "missing" if left else "done"
    finally:
        seconds = time.monotonic() - started
        report(work, todo, tally, seconds, status, store)
    letters = {name.rpartition("-")[0] for name in store.names(f"errors/fp={work.fingerprint}")}
    dead = tally.failed or any(chunk.key in letters for chunk in todo.chunks)
    return conclude(work, todo, tally, seconds, sum(chunk.rows for chunk in left), bool(dead), say)


def follow(work: Work, left: Sequence[Chunk], rows: int, runner: Runner, tally: Tally, say: Say) -> None:
    """Count receipts as they come, and say now and then how it goes."""
    started = said = time.monotonic()
    for receipt in runner(work, left) if left else ():
        tally.add(receipt)
        tally.stop_if_hopeless(work.job.limits.error_rate)
        now = time.monotonic()
        if now - said >= EVERY_S:
            done = tally.answered + tally.failed
            rate = done / (now - started)
            ahead = f"{rate:.1f} rows/s, {(rows - done) / rate:,.0f} s left"
            say(f"{done:,} of {rows:,} rows, {tally.failed:,} failed, {ahead}")
            said = now


def missing(work: Work, chunks: Sequence[Chunk], store: Store) -> list[Chunk]:
    there = store.names(f"data/fp={work.fingerprint}")
    return [chunk for chunk in chunks if f"{chunk.key}.parquet" not in there]


def conclude(work: Work, todo: resume.Plan, tally: Tally, seconds: float, lost: int, dead: bool, say: Say) -> int:
    """The last lines of a run, and its exit code."""
    path = work.job.output.path
    done = tally.answered + tally.failed
    if done:
        say(
            f"{tally.answered:,} answered, {tally.failed:,} failed in {seconds:.1f} s: {done / seconds:.1f} rows/s, "
            f"{tally.vision_tokens / seconds:,.0f} vision and {tally.output_tokens / seconds:,.0f} output tokens/s"
        )
    if tally.failed:
        say(tally.reasons())
    say(f"answers: {path}/data/fp={work.fingerprint}/*.parquet")
    if dead:
        say(f"dead letters: {path}/errors/fp={work.fingerprint}/*.parquet")
    if lost:
        say(f"{lost:,} rows are neither answered nor failed; run the same command again")
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
        "versions": {name: version(name) for name in ("ray", "torch", "transformers", "pyarrow")}
        | {"python": platform.python_version()},
    }
    store.create(f"runs/{work.run}/job.json", work.job.model_dump_json(indent=2, by_alias=True).encode())
    store.create(f"runs/{work.run}/report.json", json.dumps(counts, indent=2).encode())


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
