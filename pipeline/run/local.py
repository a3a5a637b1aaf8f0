"""The flow in one process. This is what the pipeline means; cluster.py is how it scales."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace

from pipeline.answer import Answerer
from pipeline.context import RunContext
from pipeline.manifest.chunks import Chunk
from pipeline.output.commit import CommitReceipt, commit_chunk
from pipeline.output.dataset import Dataset
from pipeline.output.store import OutputStore
from pipeline.prepare import Preparer
from pipeline.run import log
from pipeline.run.lease import raise_if_taken_over
from pipeline.run.signals import StopSignals
from pipeline.types import Outcome


def run(context: RunContext, chunks: Sequence[Chunk], signals: StopSignals) -> Iterator[CommitReceipt]:
    store = OutputStore(context.job.output.path)
    with (
        closing(Preparer(context)) as preparer,
        closing(Answerer(context)) as answerer,
        signals.stop_gracefully() as stopping,
    ):
        for chunk in chunks:
            if stopping.is_set():
                return
            outcomes = answerer.answer_items(preparer.prepare_chunk(chunk))
            yield commit_outcomes(chunk.part_name, outcomes, preparer.timer.take_seconds(), answerer, store)


def commit_outcomes(
    part_name: str,
    outcomes: Sequence[Outcome],
    prepare_seconds: Mapping[str, float],
    answerer: Answerer,
    store: OutputStore,
) -> CommitReceipt:
    """Commit an answered chunk; `spent` are the seconds that preparing it took."""
    raise_if_taken_over(store, answerer.context.fingerprint, answerer.context.lease_epoch)
    log.write_failure_events(outcomes)
    with answerer.timer.measure("commit"):
        receipt = commit_chunk(part_name, outcomes, answerer.context, Dataset(store, answerer.context.fingerprint))
    return replace(receipt, worker_seconds={**prepare_seconds, **answerer.timer.take_seconds()})
