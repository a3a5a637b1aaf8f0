"""Finds the source that answers a row of the manifest, where it is not the row's own chunk.

A row that repeats another one is answered where that one is. After a manifest was rewritten, some of its rows are
answered in orphan parts, whose chunks are gone; the first such part counts. A row that its own chunk answers, too,
counts there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.output.dataset import Dataset
from pipeline.output.part_listing import PartListing
from pipeline.run.dedup import HashBuckets, match_rows
from pipeline.run.orphans import add_part_rows, find_answered_rows

Numbers = NDArray[np.int64]


def match_foreign_rows(
    asked_rows: HashBuckets,
    *,
    chunk_starts: Numbers,
    chunk_sources: Numbers,
    source_count: int,
    list_source_parts: Callable[[int], Sequence[str]],
    orphan_parts: PartListing,
    parts: PartListing,
    dataset: Dataset,
) -> Numbers:
    """Pairs of a row's number and its source's number, in the order of the rows.

    `chunk_starts` are the numbers of the first rows of the manifest's chunks, `chunk_sources` their sources, or -1.
    Orphan parts are sources that are numbered after them. `parts` are all parts of the output.
    """
    with HashBuckets() as orphan_rows:
        orphan_starts = add_part_rows(orphan_rows, orphan_parts, dataset)
        buckets = zip(asked_rows, orphan_rows, strict=True)
        rows, first_rows, orphans = np.concatenate([match_rows(asked, others) for asked, others in buckets]).T
        sources = chunk_sources[np.searchsorted(chunk_starts, first_rows, side="right") - 1]
        contested_sources = np.unique(sources[(orphans >= 0) & (sources >= 0)])
        contested_parts = parts.select(
            [part for source in contested_sources for part in list_source_parts(int(source))]
        )
        settled_orphans = find_answered_rows(contested_parts, orphan_rows, dataset)
    uses_orphan = (orphans >= 0) & ~np.isin(orphans, settled_orphans)
    orphan_sources = source_count + np.searchsorted(orphan_starts, orphans, side="right") - 1
    sources = np.where(uses_orphan, orphan_sources, sources)
    is_foreign = (sources >= 0) & (uses_orphan | (rows != first_rows))
    pairs: Numbers = np.stack([rows, sources], axis=1)[is_foreign]
    return pairs[np.argsort(pairs[:, 0])]
