"""The chunks of a manifest as arrays: ten million take 26 bytes each, where objects take 500.

Only chunks that have more than their rows and their place stay objects: slices, rows that are left out, versions of
media, or failed rows to ask again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import overload

import numpy as np
from numpy.typing import NDArray

from pipeline.manifest.chunks import Chunk
from pipeline.manifest.files import ManifestFile
from pipeline.manifest.hash_arrays import BLOCK_LENGTH, HASH_BYTES, NAME_BYTES, are_among

CHUNK_DTYPE = np.dtype([("rows_hash", f"S{HASH_BYTES}"), ("start", "<i8"), ("length", "<u4"), ("row_count", "<u2")])
MAX_LENGTH, MAX_ROWS = 2**32 - 1, 2**16 - 1  # of chunks in arrays


@dataclass(frozen=True, eq=False)
class ChunkTable(Sequence[Chunk]):
    """Makes its chunks when they are asked for. Tables that were selected from one share its arrays."""

    files: Sequence[ManifestFile]
    first_chunks: NDArray[np.int64]  # of each file
    records: NDArray[np.void]
    positions: NDArray[np.uint32] | None  # of the chunks in `records`; None: all
    objects: Mapping[int, Chunk]  # by their position: the chunks that stay objects

    @classmethod
    def collect(cls, chunks: Iterable[Chunk]) -> ChunkTable:
        files: list[ManifestFile] = []
        first_chunks: list[int] = []
        objects: dict[int, Chunk] = {}
        data = bytearray()  # it grows without a copy of its own
        rows: list[tuple[bytes, int, int, int]] = []
        for number, chunk in enumerate(chunks):
            if not files or files[-1] != chunk.file:
                files.append(chunk.file)
                first_chunks.append(number)
            start, end = chunk.span
            rows.append(
                (bytes.fromhex(chunk.rows_hash), start, min(end - start, MAX_LENGTH), min(chunk.row_count, MAX_ROWS))
            )
            is_large = end - start > MAX_LENGTH or chunk.row_count > MAX_ROWS
            if is_large or chunk != Chunk(chunk.file, chunk.span, chunk.rows_hash, chunk.row_count):
                objects[number] = chunk
            if len(rows) == BLOCK_LENGTH:
                data += np.array(rows, CHUNK_DTYPE).tobytes()
                rows.clear()
        data += np.array(rows, CHUNK_DTYPE).tobytes()
        return cls(files, np.array(first_chunks, np.int64), np.frombuffer(data, CHUNK_DTYPE), None, objects)

    def __len__(self) -> int:
        return len(self.records if self.positions is None else self.positions)

    @overload
    def __getitem__(self, index: int) -> Chunk: ...
    @overload
    def __getitem__(self, index: slice) -> ChunkTable: ...
    def __getitem__(self, index: int | slice) -> Chunk | ChunkTable:
        if isinstance(index, slice):
            return replace(self, positions=self._get_positions(index))
        position = range(len(self.records))[index] if self.positions is None else int(self.positions[index])
        return self.objects.get(position) or self._build(position, *self.records[position].item())

    def __iter__(self) -> Iterator[Chunk]:
        for start in range(0, len(self), BLOCK_LENGTH):
            positions = self._get_positions(slice(start, start + BLOCK_LENGTH))
            for position, record in zip(positions.tolist(), self.records[positions].tolist(), strict=True):
                yield self.objects.get(position) or self._build(position, *record)

    def _build(self, position: int, rows_hash: bytes, start: int, length: int, row_count: int) -> Chunk:
        file = self.files[int(np.searchsorted(self.first_chunks, position, side="right")) - 1]
        return Chunk(file, (start, start + length), rows_hash.ljust(HASH_BYTES, b"\0").hex(), row_count)

    def _get_positions(self, part: slice = slice(None)) -> NDArray[np.uint32]:
        if self.positions is None:
            return np.arange(*part.indices(len(self.records)), dtype=np.uint32)
        return self.positions[part]

    @cached_property
    def _own_objects(self) -> dict[int, Chunk]:
        """By their index."""
        if not self.objects:
            return {}
        positions = np.array([*self.objects], np.uint32)
        indexes = np.flatnonzero(np.isin(self._get_positions(), positions))
        return {index: self[index] for index in indexes.tolist()}

    def _read_column(self, name: str) -> NDArray[np.generic]:
        column = self.records[name]
        return column if self.positions is None else column[self.positions]

    @property
    def row_counts(self) -> NDArray[np.int64]:
        return self._count_rows(lambda chunk: chunk.row_count)

    @property
    def first_rows(self) -> NDArray[np.int64]:
        """The number of the first row of each chunk, and the end."""
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(self.row_counts)])

    @property
    def asked_row_counts(self) -> NDArray[np.int64]:
        return self._count_rows(lambda chunk: chunk.asked_row_count)

    def _count_rows(self, count: Callable[[Chunk], int]) -> NDArray[np.int64]:
        counts = self._read_column("row_count").astype(np.int64)
        for index, chunk in self._own_objects.items():
            counts[index] = count(chunk)
        return counts

    @property
    def asked_row_count(self) -> int:
        return int(self.asked_row_counts.sum())

    @property
    def rows_hashes(self) -> NDArray[np.bytes_]:
        return self._read_column("rows_hash")  # type: ignore[return-value]

    @property
    def part_names(self) -> NDArray[np.bytes_]:
        """In bytes: the chunk's name and the generation."""
        names = self.rows_hashes.astype(f"S{NAME_BYTES}")
        for index, chunk in self._own_objects.items():
            names[index] = bytes.fromhex(chunk.name) + chunk.generation.to_bytes(2, "big")
        return names

    def find_chunks(self, chunk_names: Collection[str]) -> dict[str, Chunk]:
        """Those of the named chunks that are here."""
        wanted = np.sort(np.array([bytes.fromhex(name) for name in chunk_names], f"S{HASH_BYTES}"))
        are_found = are_among(self.part_names.astype(f"S{HASH_BYTES}"), wanted)
        return {chunk.name: chunk for chunk in self.select(are_found)}

    def select(self, mask: NDArray[np.bool_]) -> ChunkTable:
        return replace(self, positions=self._get_positions()[mask])

    def replace_chunks(self, changed: Mapping[int, Chunk]) -> ChunkTable:
        """By their index."""
        positions = self._get_positions() if self.positions is not None else None
        own = {index if positions is None else int(positions[index]): chunk for index, chunk in changed.items()}
        return replace(self, objects={**self.objects, **own})

    def add_chunks(self, chunks: Sequence[Chunk]) -> ChunkTable:
        added = ChunkTable.collect(chunks)
        end = len(self.records)
        return ChunkTable(
            [*self.files, *added.files],
            np.concatenate([self.first_chunks, added.first_chunks + end]),
            np.concatenate([self.records, added.records], dtype=CHUNK_DTYPE),
            np.concatenate([self._get_positions(), end + added._get_positions()], dtype=np.uint32),
            {**self.objects, **{end + position: chunk for position, chunk in added.objects.items()}},
        )
