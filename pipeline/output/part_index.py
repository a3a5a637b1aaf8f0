"""Summaries of many parts in one object, so that nobody reads the footers of a million parts.

    _index/fp=FINGERPRINT/RUN-NUMBER.parquet      a row for each part: its size, its time, and what its footer says

A run writes one for every few thousand commits, and one for parts of earlier runs that have none. An entry counts while
the listing shows the part with the same size and time; the footers of all other parts are read. So a summary that is
lost, late or stale costs requests and never changes an answer.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.errors import OutputError
from pipeline.output.dataset import Dataset, PartFooter
from pipeline.output.listing import ObjectInfo
from pipeline.output.part_listing import PartListing
from pipeline.output.thread_map import map_in_threads

PARTS_PER_SUMMARY = 4096
MAX_PARTS_ADDED = 16_384  # by one run, of earlier runs: their footers are read
SCHEMA = pa.schema(
    [
        ("part", pa.string()),
        ("size", pa.int64()),
        ("modified_at", pa.float64()),  # null if the store did not tell
        ("rows", pa.int64()),
        ("note", pa.string()),  # the commit note, as JSON
    ]
)


class IndexWriter:
    """Collects what a run has committed, and writes a summary now and then. A failure to write one is no error."""

    def __init__(self, dataset: Dataset, run_id: str):
        self.dataset, self.run_id = dataset, run_id
        self.entries: list[dict[str, Any]] = []
        self.summary_count = 0

    def add_part(self, part: str, info: ObjectInfo, row_count: int, note: Mapping[str, Any]) -> None:
        self.entries.append({"part": part, **info._asdict(), "rows": row_count, "note": json.dumps(note)})
        if len(self.entries) >= PARTS_PER_SUMMARY:
            self.flush()

    def add_missing_parts(self, parts: PartListing) -> None:
        """Of earlier runs: of those that were killed, and of versions that wrote no summaries."""
        with suppress(OutputError):
            missing = list(islice(select_missing(self.dataset, parts), MAX_PARTS_ADDED))
            for part, footer in zip(missing, map_in_threads(self.dataset.read_footer, missing), strict=True):
                self.add_part(part, parts[part], footer.row_count, footer.note)

    def flush(self) -> None:
        if self.entries:
            self.summary_count += 1
            sink = pa.BufferOutputStream()
            pq.write_table(pa.Table.from_pylist(self.entries, SCHEMA), sink, compression="zstd")
            self.entries = []
            with suppress(OutputError):
                self.dataset.write_summary(f"{self.run_id}-{self.summary_count:05}", bytes(sink.getvalue()))


def read_footers(dataset: Dataset, parts: PartListing) -> Iterator[tuple[str, PartFooter]]:
    """What the footers of all parts say, each once, in no order."""
    missing = np.ones(len(parts), bool)
    for table in read_valid_entries(dataset, parts, missing, ("rows", "note")):
        for part, rows, note in zip(*(table[name].to_pylist() for name in ("part", "rows", "note")), strict=True):
            yield part, PartFooter(rows, json.loads(note))
    other_parts = PartListing(parts.records[missing])
    yield from zip(other_parts, map_in_threads(dataset.read_footer, other_parts), strict=True)


def select_missing(dataset: Dataset, parts: PartListing) -> PartListing:
    """The parts that no summary describes as they are now."""
    missing = np.ones(len(parts), bool)
    for _ in read_valid_entries(dataset, parts, missing):
        pass
    return PartListing(parts.records[missing])


def read_valid_entries(
    dataset: Dataset, parts: PartListing, missing: NDArray[np.bool_], more_columns: Sequence[str] = ()
) -> Iterator[pa.Table]:
    """Summary by summary, the entries of parts that are still `missing`, which is kept up to date."""
    names = sorted(dataset.list_summaries()) if len(parts) else []
    columns = ["part", "size", "modified_at", *more_columns]

    def read_summary(name: str) -> pa.Table | None:
        with suppress(OutputError, pa.ArrowInvalid):  # it was deleted meanwhile, or is damaged
            return pq.read_table(io.BytesIO(dataset.read_summary(name)), columns=columns)
        return None

    for table in map_in_threads(read_summary, names):
        if table is not None:
            positions = parts.locate(table["part"].to_pylist())
            are_valid = (positions >= 0) & missing[positions] & are_unchanged(table, parts.records[positions])
            rows = np.flatnonzero(are_valid)
            rows = rows[np.unique(positions[rows], return_index=True)[1]]
            missing[positions[rows]] = False
            yield table.take(rows)


def are_unchanged(table: pa.Table, records: NDArray[np.void]) -> NDArray[np.bool_]:
    """By size and time. Some stores tell the time of one object in whole seconds, and list it more exactly."""
    sizes, times, listed_times = table["size"].to_numpy(), table["modified_at"].to_numpy(), records["modified_at"]
    are_same_times = (listed_times == times) | (np.floor(listed_times) == times)
    same: NDArray[np.bool_] = are_same_times & (records["size"] == sizes)
    return same
