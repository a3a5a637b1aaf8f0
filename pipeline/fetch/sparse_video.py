"""Download only those ranges of a long video that hold the wanted frames, into a sparse file.

MP4 and QuickTime list in one place (`moov`, at the beginning or the end) where every frame lies. With this table and
the first frames, a decoder can tell which bytes it needs; the rest is never read. This pays only if the job looks at
frames that are seconds apart: frames closer together need nearly all bytes, which are better prefetched. Matroska and
MPEG streams have no such table, and fragmented files have it in pieces: they are downloaded.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from concurrent.futures import Future

from pipeline.fetch.blob import Blob, BlobWriter, ByteRanges, write_at
from pipeline.fetch.remote_object import FIRST_READ_BYTES, RemoteObject

MIN_SPARSE_BYTES = 64 << 20  # a download of fewer bytes costs less than the extra requests
MIN_FRAME_INTERVAL_S = 2.0
MAX_TOP_LEVEL_BOXES = 64  # that are searched for `moov`
BOX_HEADER_BYTES = 4096
MAX_MOOV_BYTES = 256 << 20
MERGE_GAP_BYTES = 1 << 20  # reading a smaller gap costs less than another request
REQUEST_BYTES, MAX_CONCURRENT_REQUESTS = 8 << 20, 8


async def open_sparse_video(
    remote_object: RemoteObject, writer: BlobWriter, frame_count: int, pages: str, min_bytes: int | None
) -> Blob | None:
    """None for a file that is better downloaded whole. The writer holds the beginning of the file."""
    if writer.kind != "video" or remote_object.size_bytes < (min_bytes or MIN_SPARSE_BYTES):
        return None
    video = SparseVideo(remote_object, writer)
    moov = await video.find_moov()
    if moov is None:
        return None
    start, end, header = moov
    if read_duration_s(header) < MIN_FRAME_INTERVAL_S * frame_count:
        return None
    if b"mvex" in await video.read_range(start, end):  # a fragmented file
        return None
    await video.read_range(end, end + FIRST_READ_BYTES)  # often the first frames
    return writer.to_blob(pages, range_loader=video)


class SparseVideo:
    """The file and the ranges it holds. It is opened anew for each write, so that late bytes do not recreate it."""

    def __init__(self, remote_object: RemoteObject, writer: BlobWriter):
        self.remote_object, self.size_bytes = remote_object, remote_object.size_bytes
        self.uri, self.path = writer.uri, writer.path
        self.requested_ranges: list[tuple[int, int]] = [(0, writer.received_bytes)]
        self.event_loop = asyncio.get_running_loop()
        self.request_limit = asyncio.Semaphore(MAX_CONCURRENT_REQUESTS)
        self.pending_loads: list[Future[None]] = []
        with open(self.path, "r+b") as file:
            file.truncate(self.size_bytes)

    async def find_moov(self) -> tuple[int, int, bytes] | None:
        """Its start, its end and its first bytes."""
        start = 0
        for _ in range(MAX_TOP_LEVEL_BOXES):
            prefix = await self.read_range(start, start + BOX_HEADER_BYTES)
            size, name = int.from_bytes(prefix[:4]), prefix[4:8]
            if size == 1:  # a long size follows the name
                size = int.from_bytes(prefix[8:16])
            elif size == 0:  # the box reaches to the end of the file
                size = self.size_bytes - start
            end = start + size
            if name == b"moov":
                return (start, end, prefix) if size <= MAX_MOOV_BYTES and end <= self.size_bytes else None
            if name == b"moof" or not name.isalnum() or size < 8 or end >= self.size_bytes:
                return None
            start = end
        return None

    async def read_range(self, start: int, end: int) -> bytes:
        end = min(end, self.size_bytes)
        await self._download_ranges(self._claim_missing([(start, end)]))
        with open(self.path, "rb") as file:
            file.seek(start)
            return file.read(end - start)

    def load_ranges(self, batches: Sequence[ByteRanges]) -> list[Future[None]]:
        downloads = [self._download_ranges(self._claim_missing(ranges)) for ranges in batches]
        self.pending_loads = [asyncio.run_coroutine_threadsafe(download, self.event_loop) for download in downloads]
        return self.pending_loads

    def close(self) -> None:
        for load in self.pending_loads:
            load.cancel()

    def _claim_missing(self, ranges: ByteRanges) -> list[tuple[int, int]]:
        """The requests that are still needed. From now on their ranges count as requested."""
        merged = merge_ranges(ranges, MERGE_GAP_BYTES)
        gaps = [gap for start, end in merged for gap in find_gaps(start, end, self.requested_ranges)]
        self.requested_ranges = merge_ranges([*self.requested_ranges, *gaps], 0)
        return [
            (piece_start, min(piece_start + REQUEST_BYTES, end))
            for start, end in gaps
            for piece_start in range(start, end, REQUEST_BYTES)
        ]

    async def _download_ranges(self, ranges: ByteRanges) -> None:
        await asyncio.gather(*(self._download_range(start, end) for start, end in ranges))

    async def _download_range(self, start: int, end: int) -> None:
        async with self.request_limit:
            data = await self.remote_object.read_range(start, end)
        with open(self.path, "r+b") as file:
            write_at(file.fileno(), data, start, uri=self.uri)


def merge_ranges(ranges: ByteRanges, max_gap: int) -> list[tuple[int, int]]:
    """
    >>> merge_ranges([(5, 7), (0, 3), (9, 12)], 2)
    [(0, 12)]
    >>> merge_ranges([(5, 7), (0, 3)], 0)
    [(0, 3), (5, 7)]
    """
    merged: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if merged and start <= merged[-1][1] + max_gap:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged


def find_gaps(start: int, end: int, covered: ByteRanges) -> Iterator[tuple[int, int]]:
    """
    >>> list(find_gaps(0, 10, [(2, 3), (8, 20)]))
    [(0, 2), (3, 8)]
    """
    for covered_start, covered_end in covered:
        if covered_end <= start or covered_start >= end:
            continue
        if covered_start > start:
            yield start, covered_start
        start = covered_end
    if start < end:
        yield start, end


def read_duration_s(moov: bytes) -> float:
    """The duration in the header (`mvhd`) of a `moov`; 0 if there is none."""
    mvhd_at = moov.find(b"mvhd")
    if mvhd_at < 1:
        return 0.0
    fields = moov[mvhd_at + 4 :]
    is_long_form = fields[:1] == b"\1"
    timescale = int.from_bytes(fields[20:24] if is_long_form else fields[12:16])
    duration = int.from_bytes(fields[24:32] if is_long_form else fields[16:20])
    return duration / timescale if timescale else 0.0
