"""A long MP4 in a store or on a server -> a file with holes, filled where frames are wanted.

MP4 and QuickTime list in one place (`moov`, at the beginning or the end) where every frame lies. With it and the
first frames a decoder can say which bytes it needs, and the rest is never read. Only where the frames that a job
looks at are seconds apart: closer together they need nearly everything, which is better fetched ahead. Matroska
and MPEG streams have no such list and fragmented files have it in pieces: they are downloaded.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from concurrent.futures import Future

from pipeline.fetch.blob import Blob, Ranges, Sink, keep
from pipeline.fetch.range_download import FIRST, Rest

LEAST_BYTES = 64 << 20  # below, a download costs less than asking around
APART_S = 2.0
BOXES, HEADER = 64, 4096  # at the top of a file, before we give up; of one that is looked at
MOST_TABLE_BYTES = 256 << 20
GAP, PIECE, AT_ONCE = 1 << 20, 8 << 20, 8  # what is read rather than asked for apart; of one request; requests


async def attempt(rest: Rest, sink: Sink, *, frames: int, pages: str = "", least: int | None = None) -> Blob | None:
    """A Blob with holes, or None where the file is better read whole. The sink holds the file's beginning."""
    if sink.kind != "video" or rest.size < (least or LEAST_BYTES):
        return None
    holes = Sparse(rest, sink)
    table = await holes.table()
    if table is None or duration_s(table[2]) < APART_S * frames:
        return None
    start, end, _ = table
    if b"mvex" in await holes.read(start, end):  # fragments follow
        return None
    await holes.read(end, min(end + FIRST, rest.size))  # the first frames, where they follow the table
    return sink.blob(pages, holes=holes)


class Sparse:
    """Writes to the file by its name, so that what comes after it is gone goes nowhere."""

    def __init__(self, rest: Rest, sink: Sink):
        self.rest, self.uri, self.path = rest, sink.uri, sink.path
        self.there: list[tuple[int, int]] = [(0, sink.size)]
        self.loop = asyncio.get_running_loop()
        self.places = asyncio.Semaphore(AT_ONCE)
        self.coming: list[Future[None]] = []
        with open(self.path, "r+b") as file:
            file.truncate(rest.size)

    async def table(self) -> tuple[int, int, bytes] | None:
        """From where to where the file's `moov` is, and its beginning."""
        place = 0
        for _ in range(BOXES):
            head = await self.read(place, min(place + HEADER, self.rest.size))
            size, name = int.from_bytes(head[:4]), head[4:8]
            size = int.from_bytes(head[8:16]) if size == 1 else size or self.rest.size - place
            end = place + size
            if name == b"moov":
                return (place, end, head) if size <= MOST_TABLE_BYTES and end <= self.rest.size else None
            if name == b"moof" or not name.isalnum() or size < 8 or end >= self.rest.size:
                return None
            place = end
        return None

    async def read(self, start: int, end: int) -> bytes:
        await self._bring(self._lacking([(start, end)]))
        with open(self.path, "rb") as file:
            file.seek(start)
            return file.read(end - start)

    def fill(self, wanted: Sequence[Ranges]) -> list[Future[None]]:
        plans = [self._lacking(ranges) for ranges in wanted]
        self.coming = [asyncio.run_coroutine_threadsafe(self._bring(pieces), self.loop) for pieces in plans]
        return self.coming

    def close(self) -> None:
        for each in self.coming:
            each.cancel()

    def _lacking(self, ranges: Ranges) -> list[tuple[int, int]]:
        """What is to be asked for, in pieces; from now on it counts as there."""
        new = [gap for start, end in merged(ranges, GAP) for gap in gaps(start, end, self.there)]
        self.there = merged([*self.there, *new], 0)
        return [(at, min(at + PIECE, end)) for start, end in new for at in range(start, end, PIECE)]

    async def _bring(self, pieces: Ranges) -> None:
        await asyncio.gather(*(self._piece(start, end) for start, end in pieces))

    async def _piece(self, start: int, end: int) -> None:
        async with self.places:
            data = await self.rest.read(start, end)
        with open(self.path, "r+b") as file:
            keep(file.fileno(), data, start, uri=self.uri)


def merged(ranges: Ranges, gap: int) -> list[tuple[int, int]]:
    """
    >>> merged([(5, 7), (0, 3), (9, 12)], 2)
    [(0, 12)]
    >>> merged([(5, 7), (0, 3)], 0)
    [(0, 3), (5, 7)]
    """
    out: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if out and start <= out[-1][1] + gap:
            out[-1] = (out[-1][0], max(out[-1][1], end))
        else:
            out.append((start, end))
    return out


def gaps(start: int, end: int, there: Ranges) -> Iterator[tuple[int, int]]:
    """
    >>> list(gaps(0, 10, [(2, 3), (8, 20)]))
    [(0, 2), (3, 8)]
    """
    for first, last in there:
        if last <= start or first >= end:
            continue
        if first > start:
            yield start, first
        start = last
    if start < end:
        yield start, end


def duration_s(table: bytes) -> float:
    """As the beginning of a `moov` says; 0 where it does not."""
    at = table.find(b"mvhd") + 4
    wide = table[at : at + 1] == b"\1"
    scale = int.from_bytes(table[at + 20 : at + 24] if wide else table[at + 12 : at + 16])
    length = int.from_bytes(table[at + 24 : at + 32] if wide else table[at + 16 : at + 20])
    return length / scale if at > 4 and scale else 0.0
