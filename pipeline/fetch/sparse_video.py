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

from pipeline.fetch.blob import Blob, BlobWriter, ByteRanges, write_at
from pipeline.fetch.range_download import FIRST_READ_BYTES, RemoteObject

MIN_SPARSE_BYTES = 64 << 20  # below, a download costs less than asking around
MIN_FRAME_INTERVAL_S = 2.0
MAX_TOP_LEVEL_BOXES, BOX_HEADER_BYTES = 64, 4096  # at the top of a file, before we give up; of one that is looked at
MAX_MOOV_BYTES = 256 << 20
MERGE_GAP_BYTES, REQUEST_BYTES, MAX_CONCURRENT_REQUESTS = (
    1 << 20,
    8 << 20,
    8,
)  # what is read rather than asked for apart; of one request; requests


async def open_sparse_video(
    remote_object: RemoteObject, writer: BlobWriter, *, frame_count: int, pages: str = "", min_bytes: int | None = None
) -> Blob | None:
    """A Blob with holes, or None where the file is better read whole. The sink holds the file's beginning."""
    if writer.kind != "video" or remote_object.size_bytes < (min_bytes or MIN_SPARSE_BYTES):
        return None
    holes = SparseVideo(remote_object, writer)
    table = await holes.find_moov()
    if table is None or read_duration_s(table[2]) < MIN_FRAME_INTERVAL_S * frame_count:
        return None
    start, end, _ = table
    if b"mvex" in await holes.read_range(start, end):  # fragments follow
        return None
    await holes.read_range(
        end, min(end + FIRST_READ_BYTES, remote_object.size_bytes)
    )  # the first frames, where they follow the table
    return writer.to_blob(pages, range_loader=holes)


class SparseVideo:
    """Writes to the file by its name, so that what comes after it is gone goes nowhere."""

    def __init__(self, remote_object: RemoteObject, writer: BlobWriter):
        self.remote_object, self.uri, self.path = remote_object, writer.uri, writer.path
        self.requested_ranges: list[tuple[int, int]] = [(0, writer.received_bytes)]
        self.event_loop = asyncio.get_running_loop()
        self.request_limit = asyncio.Semaphore(MAX_CONCURRENT_REQUESTS)
        self.pending_loads: list[Future[None]] = []
        with open(self.path, "r+b") as file:
            file.truncate(remote_object.size_bytes)

    async def find_moov(self) -> tuple[int, int, bytes] | None:
        """From where to where the file's `moov` is, and its beginning."""
        place = 0
        for _ in range(MAX_TOP_LEVEL_BOXES):
            head = await self.read_range(place, min(place + BOX_HEADER_BYTES, self.remote_object.size_bytes))
            size, name = int.from_bytes(head[:4]), head[4:8]
            size = int.from_bytes(head[8:16]) if size == 1 else size or self.remote_object.size_bytes - place
            end = place + size
            if name == b"moov":
                return (place, end, head) if size <= MAX_MOOV_BYTES and end <= self.remote_object.size_bytes else None
            if name == b"moof" or not name.isalnum() or size < 8 or end >= self.remote_object.size_bytes:
                return None
            place = end
        return None

    async def read_range(self, start: int, end: int) -> bytes:
        await self._download_ranges(self._claim_missing([(start, end)]))
        with open(self.path, "rb") as file:
            file.seek(start)
            return file.read(end - start)

    def load_ranges(self, batches: Sequence[ByteRanges]) -> list[Future[None]]:
        plans = [self._claim_missing(ranges) for ranges in batches]
        self.pending_loads = [
            asyncio.run_coroutine_threadsafe(self._download_ranges(pieces), self.event_loop) for pieces in plans
        ]
        return self.pending_loads

    def close(self) -> None:
        for each in self.pending_loads:
            each.cancel()

    def _claim_missing(self, ranges: ByteRanges) -> list[tuple[int, int]]:
        """What is to be asked for, in pieces; from now on it counts as there."""
        new = [
            gap
            for start, end in merge_ranges(ranges, MERGE_GAP_BYTES)
            for gap in find_gaps(start, end, self.requested_ranges)
        ]
        self.requested_ranges = merge_ranges([*self.requested_ranges, *new], 0)
        return [(at, min(at + REQUEST_BYTES, end)) for start, end in new for at in range(start, end, REQUEST_BYTES)]

    async def _download_ranges(self, ranges: ByteRanges) -> None:
        await asyncio.gather(*(self._download_range(start, end) for start, end in ranges))

    async def _download_range(self, start: int, end: int) -> None:
        async with self.request_limit:
            data = await self.remote_object.read_range(start, end)
        with open(self.path, "r+b") as file:
            write_at(file.fileno(), data, start, uri=self.uri)


def merge_ranges(ranges: ByteRanges, max_gap: int) -> list[tuple[int, int]]:
    """
    >>> merged([(5, 7), (0, 3), (9, 12)], 2)
    [(0, 12)]
    >>> merged([(5, 7), (0, 3)], 0)
    [(0, 3), (5, 7)]
    """
    out: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if out and start <= out[-1][1] + max_gap:
            out[-1] = (out[-1][0], max(out[-1][1], end))
        else:
            out.append((start, end))
    return out


def find_gaps(start: int, end: int, covered: ByteRanges) -> Iterator[tuple[int, int]]:
    """
    >>> list(gaps(0, 10, [(2, 3), (8, 20)]))
    [(0, 2), (3, 8)]
    """
    for first, last in covered:
        if last <= start or first >= end:
            continue
        if first > start:
            yield start, first
        start = last
    if start < end:
        yield start, end


def read_duration_s(moov: bytes) -> float:
    """As the beginning of a `moov` says; 0 where it does not."""
    at = moov.find(b"mvhd") + 4
    wide = moov[at : at + 1] == b"\1"
    scale = int.from_bytes(moov[at + 20 : at + 24] if wide else moov[at + 12 : at + 16])
    length = int.from_bytes(moov[at + 24 : at + 32] if wide else moov[at + 16 : at + 20])
    return length / scale if at > 4 and scale else 0.0
