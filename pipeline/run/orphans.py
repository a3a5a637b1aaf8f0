"""Compares the rows of orphan parts with those of the manifest and of its parts.

An orphan part belongs to no chunk of the manifest, because the manifest was rewritten or is split elsewhere. Rows that
it answers are not asked again. Some of its rows may also be in another part: a run that was taken over can still commit
one part after the next run has planned the same rows in other chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipeline.output.dataset import Dataset
from pipeline.output.part_index import IndexWriter, read_row_hashes
from pipeline.output.part_listing import PartListing
from pipeline.output.thread_map import map_in_threads
from pipeline.run.dedup import HashBuckets, find_common_numbers, find_duplicates, number_equal_rows

RowHashes = NDArray[np.uint64]  # three per row, see hash_row_keys
RowNumbers = NDArray[np.uint64] | NDArray[np.int64]  # counted over all rows of a manifest, or of several parts


@dataclass(frozen=True, slots=True)
class OrphanRows:
    """The rows of all orphan parts, numbered from one part to the next."""

    parts: PartListing = field(default_factory=PartListing.empty)
    first_rows: NDArray[np.int64] = field(default_factory=lambda: np.zeros(1, np.int64))  # of each part, and the end
    other_parts: PartListing = field(
        default_factory=PartListing.empty
    )  # those of the manifest's chunks that may hold some of the rows, too
    are_repeated: bool = False  # some of the rows are in two parts

    @property
    def row_count(self) -> int:
        return int(self.first_rows[-1])


def match_orphans(
    orphan_parts: PartListing,
    manifest_rows: HashBuckets,
    list_parts_with: Callable[[RowNumbers], PartListing],
    dataset: Dataset,
    index: IndexWriter | None = None,
) -> tuple[OrphanRows, RowNumbers]:
    """The rows of orphan parts, and the manifest's rows that they answer.

    `list_parts_with` gives the other parts that may hold some of the manifest's rows. `index` takes the hashes of rows
    of parts that were read whole, so that the next run does not read them.
    """
    with HashBuckets() as orphan_rows, HashBuckets() as other_rows:
        first_rows = add_part_rows(orphan_rows, orphan_parts, dataset, index)
        answered = find_common_numbers(manifest_rows, orphan_rows)
        other_parts = list_parts_with(answered)
        add_part_rows(other_rows, other_parts, dataset, index)
        are_repeated = bool(len(find_common_numbers(orphan_rows, other_rows))) or any(
            len(find_duplicates(rows)[0]) for rows in orphan_rows
        )
        return OrphanRows(orphan_parts, first_rows, other_parts, are_repeated), answered


def find_superfluous_parts(orphans: OrphanRows, dataset: Dataset) -> tuple[list[str], bool]:
    """The parts without which every row is still there, and whether rows are repeated in the parts that stay.

    The part of the older run is the late one. A part of the manifest's chunks stays if rows failed in its chunk.
    """
    if not orphans.are_repeated:
        return [], False
    parts = orphans.parts.add(orphans.other_parts)
    superfluous: list[str] = []
    with HashBuckets() as row_hashes:
        first_rows = add_part_rows(row_hashes, parts, dataset)
        groups = number_equal_rows(row_hashes)
    rows_of = dict(zip(parts, np.split(groups, first_rows[1:-1]), strict=True))
    copies = np.bincount(groups)
    candidates = [part for part, rows in rows_of.items() if len(rows) and (copies[rows] > 1).all()]
    footers = map_in_threads(dataset.read_footer, candidates)
    notes = {part: footer.note for part, footer in zip(candidates, footers, strict=True)}
    for part in sorted(candidates, key=lambda part: (notes[part].get("epoch", 0), part in orphans.other_parts, part)):
        is_needed = part in orphans.other_parts and notes[part]["errors"]
        if not is_needed and (copies[rows_of[part]] > 1).all():
            copies[rows_of[part]] -= 1
            superfluous.append(part)
    return superfluous, bool((copies > 1).any())


def find_answered_rows(parts: PartListing, row_hashes: HashBuckets, dataset: Dataset) -> RowNumbers:
    """The rows that are answered in these parts."""
    with HashBuckets() as answered_hashes:
        add_part_rows(answered_hashes, parts, dataset)
        return find_common_numbers(row_hashes, answered_hashes)


def count_repeated_rows(parts: PartListing, dataset: Dataset) -> int:
    """The rows that are in these parts more than once."""
    with HashBuckets() as row_hashes:
        add_part_rows(row_hashes, parts, dataset)
        return sum(len(find_duplicates(rows)[0]) for rows in row_hashes)


def add_part_rows(
    row_hashes: HashBuckets, parts: PartListing, dataset: Dataset, index: IndexWriter | None = None
) -> NDArray[np.int64]:
    """Add the rows of the parts. Returns the number of the first row of each part, and the end."""
    first_rows = [0]
    for hashes in read_row_hashes(dataset, parts, index):
        row_hashes.add_hashes(hashes)
        first_rows.append(row_hashes.row_count)
    return np.array(first_rows)


def group_by_span(row_numbers: RowNumbers, first_rows: NDArray[np.int64]) -> Iterator[tuple[int, tuple[int, ...]]]:
    """The index of each chunk or part that has such rows, and their offsets in it; both in order."""
    if not len(row_numbers):
        return
    numbers = np.sort(row_numbers.astype(np.int64))
    indexes = np.searchsorted(first_rows, numbers, side="right") - 1
    offsets = numbers - first_rows[indexes]
    boundaries = np.flatnonzero(np.diff(indexes)) + 1
    for index, group in zip(indexes[[0, *boundaries]], np.split(offsets, boundaries), strict=True):
        yield int(index), tuple(group.tolist())
