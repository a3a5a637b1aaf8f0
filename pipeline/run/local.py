"""Runs chunks in this process, one after another. This defines what a run does; `cluster/` does the same on Ray."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import replace
from functools import partial

from pipeline.answer import Answerer
from pipeline.context import RunContext
from pipeline.job.spec import Job
from pipeline.manifest.chunk_table import ChunkTable
from pipeline.manifest.chunks import compute_slice_rows
from pipeline.manifest.files import ManifestFile
from pipeline.output.commit import CommitReceipt, SettledRows, commit_chunk, join_rows, name_rows, settle_rows
from pipeline.output.dataset import Dataset
from pipeline.output.store import OutputStore
from pipeline.prepare import Preparer
from pipeline.run.lease import Lease, raise_if_taken_over
from pipeline.run.resume import HashedChunk, split_in_process
from pipeline.run.runner import ShowWork, ignore_work
from pipeline.run.signals import StopSignals


class LocalRunner:
    def connect(self, *, show_log: bool) -> AbstractContextManager[None]:
        return nullcontext()

    def describe_submission(self) -> Mapping[str, str]:
        return {}

    def split_manifest(
        self, job: Job, manifest_files: Sequence[ManifestFile], schema_prompt: str | None
    ) -> Iterator[HashedChunk]:
        return split_in_process(job, manifest_files, schema_prompt)

    def run_chunks(
        self,
        context: RunContext,
        chunks: ChunkTable,
        signals: StopSignals,
        show_work: ShowWork = ignore_work,
    ) -> Generator[CommitReceipt, None, None]:
        dataset = Dataset(OutputStore(context.job.output.path), context.fingerprint)
        with (
            closing(Preparer(context)) as preparer,
            closing(Answerer(context)) as answerer,
            signals.stop_gracefully() as stopping,
        ):
            for chunk in chunks:
                if stopping.is_set():
                    return
                slices: list[SettledRows] = []
                cut_chunk = chunk.cut(compute_slice_rows(context.job))
                for chunk_slice in cut_chunk:
                    if stopping.is_set():
                        break
                    outcomes = answerer.answer_pieces(preparer.prepare_pieces(chunk_slice))
                    slices.append(settle_rows(outcomes, context, preparer.timer.take_seconds()))
                if len(slices) == len(cut_chunk):
                    yield commit_slices(chunk.part_name, slices, answerer, dataset)
                elif slices and (receipt := commit_answered(slices, answerer, dataset)):
                    yield receipt

    def export_lease_age(self, context: RunContext, lease: Lease) -> None:
        """Only a cluster has metrics."""


def commit_slices(part_name: str, slices: Sequence[SettledRows], answerer: Answerer, dataset: Dataset) -> CommitReceipt:
    """Commit an answered chunk, unless another run has taken over the output."""
    check_allowed = partial(raise_if_taken_over, dataset, answerer.context.lease_epoch)
    rows = join_rows(slices)
    with answerer.timer.measure("commit"):
        receipt = commit_chunk(part_name, rows, answerer.context, dataset, check_allowed)
    seconds = Counter(rows.worker_seconds)
    seconds.update(answerer.timer.take_seconds())
    return replace(receipt, worker_seconds=dict(seconds))


def commit_answered(slices: Sequence[SettledRows], answerer: Answerer, dataset: Dataset) -> CommitReceipt | None:
    """Commit the answered rows of some slices of a chunk as a chunk of these rows, if there are any.

    The next run finds them by their keys and asks the other rows of the chunk, also those that failed.
    """
    rows = join_rows(slices)
    if not rows.answered.num_rows:
        return None
    answered_rows = rows._replace(failed=rows.failed.slice(0, 0))
    return commit_slices(name_rows(rows.answered), [answered_rows], answerer, dataset)
