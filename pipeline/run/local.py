"""Runs chunks in this process, one after another. This defines what a run does; `cluster/` does the same on Ray."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import replace
from functools import partial

from pipeline.answer import Answerer
from pipeline.context import RunContext
from pipeline.job.spec import Job
from pipeline.manifest.chunks import Chunk
from pipeline.manifest.files import ManifestFile
from pipeline.output.commit import CommitReceipt, commit_chunk
from pipeline.output.dataset import Dataset
from pipeline.output.store import OutputStore
from pipeline.prepare import Preparer
from pipeline.run.lease import Lease, raise_if_taken_over
from pipeline.run.resume import HashedChunk, split_in_process
from pipeline.run.runner import ShowWork, ignore_work
from pipeline.run.signals import StopSignals
from pipeline.types import Outcome


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
        chunks: Sequence[Chunk],
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
                outcomes = answerer.answer_pieces(preparer.prepare_pieces(chunk))
                yield commit_outcomes(chunk.part_name, outcomes, preparer.timer.take_seconds(), answerer, dataset)

    def export_lease_age(self, context: RunContext, lease: Lease) -> None:
        """Only a cluster has metrics."""


def commit_outcomes(
    part_name: str,
    outcomes: Sequence[Outcome],
    prepare_seconds: Mapping[str, float],
    answerer: Answerer,
    dataset: Dataset,
) -> CommitReceipt:
    """Commit an answered chunk, unless another run has taken over the output."""
    check_allowed = partial(raise_if_taken_over, dataset, answerer.context.lease_epoch)
    with answerer.timer.measure("commit"):
        receipt = commit_chunk(part_name, outcomes, answerer.context, dataset, check_allowed)
    return replace(receipt, worker_seconds={**prepare_seconds, **answerer.timer.take_seconds()})
