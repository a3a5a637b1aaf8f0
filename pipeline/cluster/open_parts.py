"""Parts of which some slices are answered. When all are, the part can be committed, by whichever replica is free.

The answered rows stay in Ray's object store, so that a process that dies takes none of them with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pipeline.cluster.slice_queue import ChunkSlice


class PlacedRows(NamedTuple):
    """Where the answered rows of a slice are."""

    block: Any  # a reference into the object store, to the answered rows of a task
    number: int  # in the block


@dataclass(slots=True)
class OpenPart:
    slices: list[ChunkSlice] = field(default_factory=list)  # that are answered, in any order
    rows: list[PlacedRows] = field(default_factory=list)  # of each of them


@dataclass(frozen=True, slots=True)
class CommitTask:
    slices: Sequence[ChunkSlice]  # in the order of the manifest
    rows: Sequence[PlacedRows]  # of each of them

    @property
    def part_name(self) -> str:
        return self.slices[0].chunk.part_name

    @property
    def is_complete(self) -> bool:
        """Whether it is all of a chunk."""
        return len(self.slices) == self.slices[0].count


class OpenParts:
    def __init__(self) -> None:
        self.parts: dict[str, OpenPart] = {}
        self.waiting: list[CommitTask] = []  # for a replica that commits them
        self.row_count = 0  # that are answered and not committed

    def add(self, chunk_slice: ChunkSlice, rows: PlacedRows) -> None:
        name = chunk_slice.chunk.part_name
        part = self.parts.setdefault(name, OpenPart())
        part.slices.append(chunk_slice)
        part.rows.append(rows)
        self.row_count += chunk_slice.rows.asked_row_count
        if len(part.slices) == chunk_slice.count:
            self.waiting.append(build_task(self.parts.pop(name)))

    def give_up_missing_slices(self) -> None:
        """Have all parts committed as they are."""
        self.waiting += map(build_task, self.parts.values())
        self.parts.clear()

    def finish(self, task: CommitTask) -> None:
        """It is committed, or its rows are lost."""
        self.row_count -= sum(chunk_slice.rows.asked_row_count for chunk_slice in task.slices)


def build_task(part: OpenPart) -> CommitTask:
    pairs = sorted(zip(part.slices, part.rows, strict=True), key=lambda pair: pair[0].number)
    return CommitTask([own for own, _ in pairs], [rows for _, rows in pairs])
