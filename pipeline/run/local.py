"""The flow in one process. This is what the pipeline means; cluster.py is how it scales."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing

from pipeline.flow import Answerer, Preparer, Work
from pipeline.intake.manifest import Chunk
from pipeline.output.write import Receipt, Store, write


def run(work: Work, chunks: Sequence[Chunk]) -> Iterator[Receipt]:
    store = Store(work.job.output.path)
    with closing(Preparer(work)) as preparer, closing(Answerer(work)) as answerer:
        for chunk in chunks:
            yield write(chunk.key, answerer.answer(preparer.prepare(chunk)), work, store)
