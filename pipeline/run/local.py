"""The flow in one process. This is what the pipeline means; cluster.py is how it scales."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace

from pipeline.answer import Answerer
from pipeline.context import Work
from pipeline.manifest.chunks import Chunk
from pipeline.output.commit import Receipt, write
from pipeline.output.store import Store
from pipeline.prepare import Preparer
from pipeline.run import log
from pipeline.run.lease import refuse_if_taken
from pipeline.run.signals import Signals
from pipeline.types import Outcome


def run(work: Work, chunks: Sequence[Chunk], signals: Signals) -> Iterator[Receipt]:
    store = Store(work.job.output.path)
    with closing(Preparer(work)) as preparer, closing(Answerer(work)) as answerer, signals.grace() as stopping:
        for chunk in chunks:
            if stopping.is_set():
                return
            outcomes = answerer.answer(preparer.prepare(chunk))
            yield commit(chunk.part, outcomes, preparer.meter.take(), answerer, store)


def commit(
    key: str, outcomes: Sequence[Outcome], spent: Mapping[str, float], answerer: Answerer, store: Store
) -> Receipt:
    """Commit an answered chunk; `spent` are the seconds that preparing it took."""
    refuse_if_taken(store, answerer.work.fingerprint, answerer.work.epoch)
    log.failures(outcomes)
    with answerer.meter.on("commit"):
        receipt = write(key, outcomes, answerer.work, store)
    return replace(receipt, seconds={**spent, **answerer.meter.take()})
