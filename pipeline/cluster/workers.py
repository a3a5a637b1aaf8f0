"""The actors of the two pools: one prepares chunks, the other answers and commits them.

An error that stops the run is returned in place of a result, because Ray would bury its message in tracebacks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import ray

from pipeline.answer import Answerer
from pipeline.cluster import chunk_codec, metrics
from pipeline.cluster.actor_pool import Parked
from pipeline.cluster.crash_ledger import MAX_CRASHES
from pipeline.cluster.isolation import ChunkStage, CrashIsolation, exit_process
from pipeline.cluster.late_preparation import LatePreparer, open_row_watchdog, split_prepared
from pipeline.cluster.output_folder import find_output_problem
from pipeline.context import RunContext
from pipeline.errors import DecodeError, GenerateError, JobError, PipelineError
from pipeline.manifest.chunks import Chunk
from pipeline.output.commit import CommitReceipt
from pipeline.output.dataset import Dataset
from pipeline.output.store import OutputStore
from pipeline.prepare import Preparer, keep_first_piece
from pipeline.run import log
from pipeline.run.local import commit_outcomes
from pipeline.types import Failure, Outcome, PreparedItem, ReadItem, SentItem


class PrepareWorker:
    def __init__(self, context: RunContext, ledger: Any):
        self.isolation = CrashIsolation(ledger, "prepare", exclusive=True)
        self.preparer = self.isolation.open_worker(lambda: Preparer(context))
        self.watchdog = open_row_watchdog(context.job)
        if isinstance(self.preparer, Preparer):
            metrics.export_prepare_metrics(context, self.preparer)

    def find_parked(self) -> Parked | None:
        return self.preparer if isinstance(self.preparer, Parked) else None

    @ray.method(num_returns=2)
    def prepare_chunk(self, chunk: Chunk) -> tuple[int | PipelineError | Parked | None, pa.Table | None]:
        """The size of the prepared chunk in bytes, or why there is none; and the prepared chunk."""
        try:
            prepared = self.run_stage(self.preparer, chunk)
        except PipelineError as error:
            return error, None
        return (prepared.nbytes, prepared) if isinstance(prepared, pa.Table) else (prepared, None)

    def run_stage(self, preparer: Preparer | Parked, chunk: Chunk) -> pa.Table | Parked | None:
        if isinstance(preparer, Parked):
            return preparer
        stage = ChunkStage(
            load_rows=lambda: preparer.read_items(chunk),
            process_rows=lambda items: list(
                keep_first_piece(items, self.watchdog.watch_steps(preparer.prepare_items(items)))
            ),
            fail_row=fail_unprepared_row,
            finish_chunk=lambda prepared_items: chunk_codec.encode_chunk(
                chunk.part_name, prepared_items, preparer.timer.take_seconds()
            ),
        )
        return self.isolation.run_stage(chunk.part_name, chunk.asked_row_count, stage)


class GenerateWorker:
    def __init__(self, context: RunContext, ledger: Any):
        log.set_run_labels(context)
        self.isolation = CrashIsolation(ledger, "generate", exclusive=False)
        self.dataset = Dataset(OutputStore(context.job.output.path), context.fingerprint)
        self.late_preparer = LatePreparer(context)
        self.answerer = self.isolation.open_worker(lambda: open_answerer(context))
        if isinstance(self.answerer, Answerer):
            metrics.export_generate_metrics(context, self.answerer)

    def find_parked(self) -> Parked | None:
        return self.answerer if isinstance(self.answerer, Parked) else None

    def generate_chunk(self, prepared: pa.Table | None) -> CommitReceipt | PipelineError | Parked | None:
        """None if nothing was done: the run is being stopped, or the chunk was lost with a node and is not there."""
        try:
            return self.run_stage(self.answerer, prepared) if prepared is not None else None
        except PipelineError as error:
            return error

    def run_stage(self, answerer: Answerer | Parked, prepared: pa.Table) -> CommitReceipt | Parked | None:
        if isinstance(answerer, Parked):
            return answerer
        part_name, prepare_seconds = chunk_codec.read_part_name(prepared), chunk_codec.read_prepare_seconds(prepared)
        stage = ChunkStage(
            load_rows=lambda: chunk_codec.decode_chunk(prepared),
            process_rows=lambda items: answer_or_exit(answerer, self.late_preparer, items),
            fail_row=fail_unanswered_row,
            finish_chunk=lambda outcomes: commit_outcomes(part_name, outcomes, prepare_seconds, answerer, self.dataset),
        )
        return self.isolation.run_stage(part_name, chunk_codec.count_rows(prepared), stage)


def open_answerer(context: RunContext) -> Answerer:
    if problem := find_output_problem(context):
        raise JobError(problem)
    return Answerer(context)


def fail_unprepared_row(read_item: ReadItem, message: str) -> PreparedItem:
    item, failure = read_item
    return replace(item, turns=()), failure or DecodeError("worker_died", message).to_failure(item.id, MAX_CRASHES)


def fail_unanswered_row(sent_item: SentItem, message: str) -> Outcome:
    item, request = sent_item
    failure = request if isinstance(request, Failure) else None
    return item, failure or GenerateError("worker_died", message).to_failure(item.id, MAX_CRASHES)


def answer_or_exit(answerer: Answerer, late_preparer: LatePreparer, items: Sequence[SentItem]) -> list[Outcome]:
    """End the process if the engine as a whole has failed."""
    prepared, rest = split_prepared(items)
    try:
        outcomes = answerer.answer_items(prepared)
        if rest:
            with late_preparer.prepare_pieces(rest) as pieces:
                outcomes += answerer.answer_pieces(pieces)
        return outcomes
    except PipelineError:
        raise
    except BaseException as error:
        if answerer.engine_thread.end_error:
            exit_process("the engine failed", error)
        raise
