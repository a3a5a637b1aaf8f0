"""The actors of the two pools: a chunk -> prepared entries; prepared entries -> a commit and its receipt.

What stops a run is handed over as a value, in place of a receipt: Ray would bury its message under pages of its own.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

import pyarrow as pa

from pipeline.answer import Answerer
from pipeline.cluster import chunk_codec, metrics
from pipeline.cluster.crash_ledger import DEATHS
from pipeline.cluster.isolation import Isolation, Stage
from pipeline.context import Work
from pipeline.errors import DecodeError, GenerateError, PipelineError
from pipeline.job.spec import Job
from pipeline.manifest.chunks import Chunk
from pipeline.media.decode import FRAME_S
from pipeline.output.commit import Receipt
from pipeline.output.store import Store
from pipeline.prepare import Preparer
from pipeline.run import log
from pipeline.run.local import commit
from pipeline.types import Asked, Entry, Failure, Outcome
from pipeline.watchdog import EXIT_CODE, Watchdog

HANG_S = 120.0  # by which preparing a row may outlast its time, which fetching and decoding keep by themselves
RECEIPT = "receipt"  # the one column of a block that needs no more work

Opened = TypeVar("Opened", Preparer, Answerer)


class Prepare:
    def __init__(self, work: Work, ledger: Any):
        self.isolation = Isolation(ledger, "prepare", sole=True)
        self.preparer = self.isolation.open(lambda: Preparer(work))
        self.watchdog = Watchdog(longest_s(work.job) + HANG_S, "preparing a row")
        if isinstance(self.preparer, Preparer):
            metrics.watch_prepare(work, self.preparer)

    def __call__(self, batch: pa.Table) -> pa.Table:
        try:
            prepared = self.prepare(usable(self.preparer), pickle.loads(batch["chunk"][0].as_py()))
        except PipelineError as error:
            return handed_over(error)
        return handed_over(None) if prepared is None else prepared

    def prepare(self, preparer: Preparer, chunk: Chunk) -> pa.Table | None:
        stage = Stage(
            load=lambda: preparer.read(chunk),
            work=lambda items: list(self.watchdog.each(preparer.requests(items))),
            give_up=unprepared,
            finish=lambda entries: chunk_codec.pack(chunk.part, entries, preparer.meter.take()),
        )
        return self.isolation.run(chunk.part, chunk.asked, stage)


class Generate:
    def __init__(self, work: Work, ledger: Any):
        log.belong(work)
        self.isolation = Isolation(ledger, "generate", sole=False)
        self.store = Store(work.job.output.path)
        self.answerer = self.isolation.open(lambda: Answerer(work))
        if isinstance(self.answerer, Answerer):
            metrics.watch_generate(work, self.answerer)

    def __call__(self, batch: pa.Table) -> pa.Table:
        if batch.column_names == [RECEIPT]:
            return batch
        try:
            return handed_over(self.generate(usable(self.answerer), batch))
        except PipelineError as error:
            return handed_over(error)

    def generate(self, answerer: Answerer, batch: pa.Table) -> Receipt | None:
        key, spent = chunk_codec.key(batch), chunk_codec.spent(batch)
        stage = Stage(
            load=lambda: chunk_codec.unpack(batch),
            work=lambda entries: answered(answerer, entries),
            give_up=unanswered,
            finish=lambda outcomes: commit(key, outcomes, spent, answerer, self.store),
        )
        return self.isolation.run(key, chunk_codec.rows(batch), stage)


def longest_s(job: Job) -> float:
    """What a row may take: its deadline, and what is added for each frame of a video in each of its columns."""
    return job.limits.deadline_s + FRAME_S * job.media.video.max_frames * max(1, len(job.input.media))


def usable(worker: Opened | PipelineError) -> Opened:
    if isinstance(worker, PipelineError):
        raise worker
    return worker


def handed_over(value: Receipt | PipelineError | None) -> pa.Table:
    return pa.table({RECEIPT: pa.array([pickle.dumps(value)], pa.binary())})


def unprepared(row: Asked, why: str) -> Entry:
    item, failure = row
    return replace(item, turns=()), failure or DecodeError("worker_died", why).failure(item.id, DEATHS)


def unanswered(entry: Entry, why: str) -> Outcome:
    item, request = entry
    failure = request if isinstance(request, Failure) else None
    return item, failure or GenerateError("worker_died", why).failure(item.id, DEATHS)


def answered(answerer: Answerer, entries: Sequence[Entry]) -> list[Outcome]:
    """An engine that fails as a whole takes its process with it: Ray starts another, and the ledger knows why."""
    try:
        return answerer.answer(entries)
    except PipelineError:
        raise
    except BaseException as error:
        if answerer.desk.ended:
            os.write(2, f"vlbatch: the engine failed: {type(error).__name__}: {error}\n".encode())
            os._exit(EXIT_CODE)
        raise
