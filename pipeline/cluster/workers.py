"""The actors of the two pools: one prepares chunks, the other answers and commits them.

An error that stops the run is returned in place of a result, because Ray would bury its message in tracebacks.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import ray

from pipeline.answer import Answerer
from pipeline.cluster import chunk_codec, metrics
from pipeline.cluster.actor_pool import FinishedTask, Parked
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
    def prepare_chunks(
        self, chunks: Sequence[Chunk]
    ) -> tuple[FinishedTask[int] | PipelineError | Parked | None, list[pa.Table] | None]:
        """The bytes of the prepared chunks, or why there are none; and the prepared chunks."""
        started = time.monotonic()
        try:
            prepared = self.run_stages(self.preparer, chunks)
        except PipelineError as error:
            return error, None
        if not isinstance(prepared, list):
            return prepared, None
        return FinishedTask(sum(table.nbytes for table in prepared), time.monotonic() - started), prepared

    def run_stages(self, preparer: Preparer | Parked, chunks: Sequence[Chunk]) -> list[pa.Table] | Parked | None:
        if isinstance(preparer, Parked):
            return preparer

        def build_stage(chunk: Chunk) -> ChunkStage[ReadItem, SentItem, pa.Table]:
            return ChunkStage(
                chunk.part_name,
                chunk.asked_row_count,
                load_rows=lambda: preparer.read_items(chunk),
                process_rows=lambda items: list(
                    keep_first_piece(items, self.watchdog.watch_steps(preparer.prepare_items(items)))
                ),
                fail_row=fail_unprepared_row,
                finish_chunk=lambda prepared_items: chunk_codec.encode_chunk(
                    chunk.part_name, prepared_items, preparer.timer.take_seconds()
                ),
            )

        return self.isolation.run_stages([build_stage(chunk) for chunk in chunks])


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

    def generate_chunks(
        self, prepared: list[pa.Table] | None
    ) -> FinishedTask[list[CommitReceipt]] | PipelineError | Parked | None:
        """None if nothing was done: the run is being stopped, or the chunks were lost with a node and are not there."""
        started = time.monotonic()
        try:
            receipts = self.run_stages(self.answerer, prepared) if prepared is not None else None
        except PipelineError as error:
            return error
        return FinishedTask(receipts, time.monotonic() - started) if isinstance(receipts, list) else receipts

    def run_stages(self, answerer: Answerer | Parked, prepared: list[pa.Table]) -> list[CommitReceipt] | Parked | None:
        if isinstance(answerer, Parked):
            return answerer

        def build_stage(table: pa.Table) -> ChunkStage[SentItem, Outcome, CommitReceipt]:
            part_name, prepare_seconds = chunk_codec.read_part_name(table), chunk_codec.read_prepare_seconds(table)
            return ChunkStage(
                part_name,
                chunk_codec.count_rows(table),
                load_rows=lambda: chunk_codec.decode_chunk(table),
                process_rows=lambda items: answer_or_exit(answerer, self.late_preparer, items),
                fail_row=fail_unanswered_row,
                finish_chunk=lambda outcomes: commit_outcomes(
                    part_name, outcomes, prepare_seconds, answerer, self.dataset
                ),
            )

        return self.isolation.run_stages([build_stage(table) for table in prepared])


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
