"""Summaries of many parts in one object, so that nobody reads a million parts, or their footers.

    _index/fp=FINGERPRINT/footers/RUN-NUMBER-HASH.parquet    for each part: its size, its time, and what its footer says
    _index/fp=FINGERPRINT/rows/RUN-NUMBER-HASH.parquet       for each part: its size, its time, and hashes of its rows

A run writes both for every few thousand commits, and for parts of earlier runs that have none. At its end it merges the
small ones of many short runs. An entry counts while the listing shows the part with the same size and time; all other
parts are read themselves. HASH is of the summary's bytes. So a summary that is lost, late, stale or damaged costs
requests and never changes an answer.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import accumulate, islice
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.errors import OutputError
from pipeline.manifest.row_keys import hash_row_keys, hash_to_hex
from pipeline.output.dataset import Dataset, PartFooter, SummaryKind
from pipeline.output.listing import ObjectInfo
from pipeline.output.part_listing import PartListing
from pipeline.output.thread_map import map_in_threads

PARTS_PER_SUMMARY = 4096
MAX_HASH_BYTES = 2**22  # in a summary; those of 64 summaries are in memory at once
MIN_MERGED = 8  # summaries
MAX_MERGED_BYTES: dict[SummaryKind, int] = {"footers": 2**18, "rows": 2**22}  # an eighth of that is a small summary
MAX_PARTS_ADDED = 16_384  # by one run, of earlier runs: their footers are read
IDENTITY = [("part", pa.string()), ("size", pa.int64()), ("modified_at", pa.float64())]  # null: the store did not tell
SCHEMAS: dict[SummaryKind, pa.Schema] = {
    "footers": pa.schema([*IDENTITY, ("rows", pa.int64()), ("note", pa.string())]),  # the commit note, as JSON
    "rows": pa.schema([*IDENTITY, ("hashes", pa.binary())]),  # see hash_row_keys
}


class IndexWriter:
    """Collects what a run has committed, and writes a summary now and then. A failure to write one is no error."""

    def __init__(self, dataset: Dataset, run_id: str):
        self.dataset, self.run_id = dataset, run_id
        self.entries: dict[SummaryKind, list[dict[str, Any]]] = {kind: [] for kind in SCHEMAS}
        self.hash_bytes = 0  # that wait
        self.summary_count = 0

    def add_part(self, part: str, info: ObjectInfo, row_count: int, note: Mapping[str, Any], hashes: bytes) -> None:
        self.add_footer(part, info, PartFooter(row_count, note))
        self.add_rows(part, info, hashes)

    def add_footer(self, part: str, info: ObjectInfo, footer: PartFooter) -> None:
        self._add("footers", part, info, {"rows": footer.row_count, "note": json.dumps(footer.note)})

    def add_rows(self, part: str, info: ObjectInfo, hashes: bytes) -> None:
        self.hash_bytes += len(hashes)
        self._add("rows", part, info, {"hashes": hashes})

    def _add(self, kind: SummaryKind, part: str, info: ObjectInfo, values: Mapping[str, Any]) -> None:
        self.entries[kind].append({"part": part, **info._asdict(), **values})
        if len(self.entries[kind]) >= PARTS_PER_SUMMARY or (kind == "rows" and self.hash_bytes > MAX_HASH_BYTES):
            self.flush(kind)

    def add_missing_parts(self, parts: PartListing) -> None:
        """Of earlier runs: of those that were killed, and of versions that wrote no summaries."""
        with suppress(OutputError):
            missing = list(islice(select_missing(self.dataset, parts), MAX_PARTS_ADDED))
            for part, footer in zip(missing, map_in_threads(self.dataset.read_footer, missing), strict=True):
                self.add_footer(part, parts[part], footer)

    def flush_all(self) -> None:
        for kind in SCHEMAS:
            self.flush(kind)

    def flush(self, kind: SummaryKind) -> None:
        entries, self.entries[kind] = self.entries[kind], []
        if kind == "rows":
            self.hash_bytes = 0
        if entries:
            with suppress(OutputError):
                self._write(kind, pa.Table.from_pylist(entries, SCHEMAS[kind]))

    def _write(self, kind: SummaryKind, table: pa.Table) -> None:
        self.summary_count += 1
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        data = bytes(sink.getvalue())
        self.dataset.write_summary(kind, f"{self.run_id}-{self.summary_count:05}-{hash_to_hex(data)}", data)

    def merge_small_summaries(self) -> None:
        """A reader that finds one gone reads the parts themselves."""
        for kind in SCHEMAS:
            with suppress(OutputError):
                names = choose_small(kind, self.dataset.list_summaries(kind))
                tables = {name: read_summary(self.dataset, kind, name) for name in names}
                readable = {name: table for name, table in tables.items() if table is not None}
                if readable:
                    self._write(kind, pa.concat_tables(readable.values()))
                for name in readable:
                    self.dataset.delete_summary(kind, name)


def choose_small(kind: SummaryKind, summaries: Mapping[str, ObjectInfo]) -> list[str]:
    """The oldest small summaries that make one of full size, if there are so many that merging pays."""
    max_bytes = MAX_MERGED_BYTES[kind]
    small = [(name, info.size) for name, info in sorted(summaries.items()) if info.size <= max_bytes // MIN_MERGED]
    sizes = accumulate(size for _, size in small)
    chosen = [name for (name, _), size in zip(small, sizes, strict=True) if size <= max_bytes]
    return chosen if len(chosen) >= MIN_MERGED else []


def read_summary(
    dataset: Dataset, kind: SummaryKind, name: str, columns: Sequence[str] | None = None
) -> pa.Table | None:
    """None if it was deleted meanwhile, or is damaged."""
    with suppress(OutputError):
        data = dataset.read_summary(kind, name)
        if name.endswith(f"-{hash_to_hex(data)}.parquet"):
            return pq.ParquetFile(io.BytesIO(data)).read(columns)
    return None


def read_footers(dataset: Dataset, parts: PartListing) -> Iterator[tuple[str, PartFooter]]:
    """What the footers of all parts say, each once, in no order."""
    missing = np.ones(len(parts), bool)
    for _, table in read_valid_entries(dataset, "footers", parts, missing):
        for part, rows, note in zip(*(table[name].to_pylist() for name in ("part", "rows", "note")), strict=True):
            yield part, PartFooter(rows, json.loads(note))
    other_parts = PartListing(parts.records[missing])
    yield from zip(other_parts, map_in_threads(dataset.read_footer, other_parts), strict=True)


def read_row_hashes(
    dataset: Dataset, parts: PartListing, index: IndexWriter | None = None
) -> Iterator[NDArray[np.uint64]]:
    """Three hashes for each row, part by part in their order. `index` takes those of parts that no summary has."""
    missing = np.ones(len(parts), bool)
    lengths, starts = np.zeros(len(parts), np.int64), np.zeros(len(parts), np.int64)
    with TemporaryFile() as spool:  # summaries have the parts in another order
        for positions, table in read_valid_entries(dataset, "rows", parts, missing):
            for position, hashes in zip(positions, table["hashes"].to_pylist(), strict=True):
                starts[position], lengths[position] = spool.tell(), len(hashes)
                spool.write(hashes)
        other_parts = PartListing(parts.records[missing])
        read_hashes = map_in_threads(
            lambda part: hash_part_rows(dataset.read_part(part, ["id", "question"])), other_parts
        )
        others = zip(other_parts, read_hashes, strict=True)
        for is_missing, start, length in zip(missing.tolist(), starts.tolist(), lengths.tolist(), strict=True):
            if is_missing:
                part, hashes = next(others)
                if index:
                    index.add_rows(part, parts[part], hashes.tobytes())
                yield hashes
            else:
                spool.seek(start)
                yield np.frombuffer(spool.read(length), np.uint64).reshape(-1, 3)


def hash_part_rows(rows: pa.Table) -> NDArray[np.uint64]:
    return hash_row_keys(list(zip(rows["id"].to_pylist(), rows["question"].to_pylist(), strict=True)))


def select_missing(dataset: Dataset, parts: PartListing) -> PartListing:
    """The parts whose footer is in no summary as it is now."""
    missing = np.ones(len(parts), bool)
    for _ in read_valid_entries(dataset, "footers", parts, missing, SCHEMAS["footers"].names[:3]):
        pass
    return PartListing(parts.records[missing])


def read_valid_entries(
    dataset: Dataset,
    kind: SummaryKind,
    parts: PartListing,
    missing: NDArray[np.bool_],
    columns: Sequence[str] | None = None,
) -> Iterator[tuple[NDArray[np.int64], pa.Table]]:
    """Summary by summary, the positions and the entries of parts that are `missing`, which is kept up to date."""
    names = sorted(dataset.list_summaries(kind)) if len(parts) else []

    for table in map_in_threads(lambda name: read_summary(dataset, kind, name, columns), names):
        if table is not None:
            positions = parts.locate(table["part"].to_pylist())
            are_valid = (positions >= 0) & missing[positions] & are_unchanged(table, parts.records[positions])
            rows = np.flatnonzero(are_valid)
            rows = rows[np.unique(positions[rows], return_index=True)[1]]
            missing[positions[rows]] = False
            yield positions[rows], table.take(rows)


def are_unchanged(table: pa.Table, records: NDArray[np.void]) -> NDArray[np.bool_]:
    """By size and time. Some stores tell the time of one object in whole seconds, and list it more exactly."""
    sizes, times, listed_times = table["size"].to_numpy(), table["modified_at"].to_numpy(), records["modified_at"]
    are_same_times = (listed_times == times) | (np.floor(listed_times) == times)
    same: NDArray[np.bool_] = are_same_times & (records["size"] == sizes)
    return same
