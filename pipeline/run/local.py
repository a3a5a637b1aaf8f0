"""The flow in one process. This is what the pipeline means; cluster.py is how it scales."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace

from pipeline.flow import Answerer, Entry, Preparer, Work
from pipeline.intake.manifest import Chunk
from pipeline.output.write import Receipt, Store, write
from pipeline.run import log


def run(work: Work, chunks: Sequence[Chunk]) -> Iterator[Receipt]:
    store = Store(work.job.output.path)
    with closing(Preparer(work)) as preparer, closing(Answerer(work)) as answerer:
        for chunk in chunks:
            entries = preparer.prepare(chunk)
            yield commit(chunk.name, entries, preparer.meter.take(), answerer, store)


def commit(key: str, entries: Sequence[Entry], spent: Mapping[str, float], answerer: Answerer, store: Store) -> Receipt:
    """Answer a prepared chunk and commit it; `spent` are the seconds that preparing took."""
    outcomes = answerer.answer(entries)
    log.failures(outcomes)
    with answerer.meter.on("commit"):
        receipt = write(key, outcomes, answerer.work, store)
    return replace(receipt, seconds={**spent, **answerer.meter.take()})
