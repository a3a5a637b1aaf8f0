"""The slices of chunks that wait to be prepared. A chunk is cut when its turn comes, because millions may wait."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.manifest.chunks import Chunk


@dataclass(frozen=True, slots=True)
class ChunkSlice:
    """Rows of a chunk that travel together."""

    chunk: Chunk
    rows: Chunk  # these rows as a chunk that can be read by itself
    number: int
    count: int  # of slices of the chunk

    @property
    def is_whole(self) -> bool:
        return self.count == 1

    @property
    def name(self) -> str:
        """Tells it from all others of a run."""
        return self.chunk.part_name if self.is_whole else f"{self.chunk.part_name}.{self.number}of{self.count}"


class SliceQueue:
    def __init__(self, chunks: Sequence[Chunk], slice_rows: int):
        self.chunks, self.slice_rows = iter(chunks), slice_rows
        self.slices: deque[ChunkSlice] = deque()  # that come before those of `chunks`
        self.uncut_count = sum(self.count_slices(chunk) for chunk in chunks)

    def __len__(self) -> int:
        return len(self.slices) + self.uncut_count

    def count_slices(self, chunk: Chunk) -> int:
        """At most: of those without a row to ask, none is sent."""
        return -(-len(chunk.retry_histories) // self.slice_rows) if chunk.generation else max(1, len(chunk.slices))

    def take(self, count: int) -> tuple[ChunkSlice, ...]:
        while len(self.slices) < count and (chunk := next(self.chunks, None)):
            self.uncut_count -= self.count_slices(chunk)
            parts = chunk.cut(self.slice_rows)
            self.slices += [ChunkSlice(chunk, rows, number, len(parts)) for number, rows in enumerate(parts)]
        return tuple(self.slices.popleft() for _ in range(min(count, len(self.slices))))

    def put_back(self, slices: Sequence[ChunkSlice]) -> None:
        self.slices.extendleft(reversed(slices))
