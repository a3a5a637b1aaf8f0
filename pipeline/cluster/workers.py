"""The actors of the two pools: one prepares slices of chunks, the other answers and commits them.

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
from pipeline.cluster.crash_ledger import COMMIT_STAGE, MAX_CRASHES
from pipeline.cluster.isolation import ChunkStage, CrashIsolation, exit_process
from pipeline.cluster.late_preparation import LatePreparer, open_row_watchdog, split_prepared
from pipeline.cluster.output_folder import find_output_problem
from pipeline.cluster.slice_queue import ChunkSlice
from pipeline.context import RunContext
from pipeline.errors import DecodeError, GenerateError, JobError, PipelineError
from pipeline.output.commit import CommitReceipt, SettledRows, settle_rows
from pipeline.output.dataset import Dataset
from pipeline.output.store import OutputStore
from pipeline.prepare import Preparer, keep_first_piece
from pipeline.run import log
from pipeline.run.local import commit_answered, commit_slices
from pipeline.run.tally import LATE_STEP
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
    def prepare_slices(
        self, slices: Sequence[ChunkSlice]
    ) -> tuple[FinishedTask[int] | PipelineError | Parked | None, list[pa.Table] | None]:
        """The bytes of the prepared slices, or why there are none; and the prepared slices."""
        started = time.monotonic()
        try:
            prepared = self.run_stages(self.preparer, slices)
        except PipelineError as error:
            return error, None
        if not isinstance(prepared, list):
            return prepared, None
        return FinishedTask(sum(table.nbytes for table in prepared), time.monotonic() - started), prepared

    def run_stages(self, preparer: Preparer | Parked, slices: Sequence[ChunkSlice]) -> list[pa.Table] | Parked | None:
        if isinstance(preparer, Parked):
            return preparer

        def build_stage(own: ChunkSlice) -> ChunkStage[ReadItem, SentItem, pa.Table]:
            return ChunkStage(
                own.name,
                own.rows.asked_row_count,
                load_rows=lambda: preparer.read_items(own.rows),
                process_rows=lambda items: list(
                    keep_first_piece(items, self.watchdog.watch_steps(preparer.prepare_items(items)))
                ),
                fail_row=fail_unprepared_row,
                finish_chunk=lambda prepared_items: chunk_codec.encode_slice(
                    own.name, prepared_items, preparer.timer.take_seconds(), is_whole=own.is_whole
                ),
            )

        return self.isolation.run_stages([build_stage(own) for own in slices])


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

    @ray.method(num_returns=2)
    def generate_slices(
        self, prepared: list[pa.Table] | None
    ) -> tuple[
        FinishedTask[list[CommitReceipt | None]] | PipelineError | Parked | None, list[SettledRows | None] | None
    ]:
        """The receipts of whole chunks, which are committed, and the rows of slices, which wait for the others.

        None if nothing was done: the run is being stopped, or the slices were lost with a node and are not there.
        """
        started = time.monotonic()
        try:
            results = self.run_stages(self.answerer, prepared) if prepared is not None else None
        except PipelineError as error:
            return error, None
        if not isinstance(results, list):
            return results, None
        receipts = [result if isinstance(result, CommitReceipt) else None for result in results]
        rows = [result if isinstance(result, SettledRows) else None for result in results]
        return FinishedTask(receipts, time.monotonic() - started), rows if any(rows) else None

    def run_stages(
        self, answerer: Answerer | Parked, prepared: list[pa.Table]
    ) -> list[CommitReceipt | SettledRows] | Parked | None:
        if isinstance(answerer, Parked):
            return answerer

        def build_stage(table: pa.Table) -> ChunkStage[SentItem, Outcome, CommitReceipt | SettledRows]:
            name, prepare_seconds = chunk_codec.read_name(table), chunk_codec.read_prepare_seconds(table)

            def finish_slice(outcomes: Sequence[Outcome]) -> CommitReceipt | SettledRows:
                seconds = {**prepare_seconds, **answerer.timer.take_seconds()}
                rows = settle_rows(outcomes, answerer.context, seconds)
                is_whole = chunk_codec.is_whole_chunk(table)
                return commit_slices(name, [rows], answerer, self.dataset) if is_whole else rows

            return ChunkStage(
                name,
                chunk_codec.count_rows(table),
                load_rows=lambda: chunk_codec.decode_slice(table),
                process_rows=lambda items: answer_or_exit(answerer, self.late_preparer, items),
                fail_row=fail_unanswered_row,
                finish_chunk=finish_slice,
            )

        return self.isolation.run_stages([build_stage(table) for table in prepared])

    def commit_part(
        self,
        part_name: str,
        is_complete: bool,
        places: Sequence[tuple[int, int]],
        *blocks: list[SettledRows] | None,
    ) -> list[CommitReceipt | None] | PipelineError | Parked | None:
        """Commit slices that are answered. Each place is the number of a block and of an entry in it.

        None if a block was lost with a node and is not there.
        """
        if isinstance(answerer := self.answerer, Parked):
            return answerer
        found = [block[entry] for number, entry in places if (block := blocks[number])]
        if len(found) < len(places):
            return None

        def commit(_: Sequence[None]) -> CommitReceipt | None:
            if is_complete:
                return commit_slices(part_name, found, answerer, self.dataset)
            return commit_answered(found, answerer, self.dataset)

        # One row that stands for all: after a crash, the part is committed alone in its process.
        stage: ChunkStage[None, None, CommitReceipt | None] = ChunkStage(
            part_name,
            row_count=1,
            load_rows=lambda: [None],
            process_rows=list,
            fail_row=lambda *_: None,
            finish_chunk=commit,
        )
        try:
            return self.isolation.run_stages([stage], COMMIT_STAGE)
        except PipelineError as error:
            return error


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
                outcomes += answerer.answer_pieces(answerer.timer.measure_each(LATE_STEP, pieces))
        return outcomes
    except PipelineError:
        raise
    except BaseException as error:
        if answerer.engine_thread.end_error:
            exit_process("the engine failed", error)
        raise
