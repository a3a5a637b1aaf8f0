"""Fetch only the beginning of media where that is enough to know their size, for planning.

The rules and limits are those of a Fetcher. One ranged read is enough for JPEG, PNG, GIF, BMP and most WebP; MP4 and
QuickTime need their table of frames, and TIFF the places where it lists its pages. HEIC, AVIF, PDF, WebP with EXIF
(which stands at its end) and other videos are downloaded. Local files are opened in place.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pipeline.fetch.access import find_page_words, parse_scheme, redact_source
from pipeline.fetch.blob import Blob, check_byte_limit, split_page_fragment
from pipeline.fetch.downloader import Downloader
from pipeline.fetch.fetcher import Fetcher, run_on_event_loop
from pipeline.fetch.object_store import ObjectStore
from pipeline.fetch.remote_object import RangedFile, fetch_with_retries
from pipeline.fetch.sniff import SIZE_IN_PREFIX_SIGNATURES, SNIFF_BYTES, TIFF_SIGNATURES, sniff_kind
from pipeline.fetch.web import WebClient
from pipeline.job.spec import Job
from pipeline.types import Size

PREFIX_BYTES = 64 << 10  # includes EXIF, colour profiles and small previews
MAX_CONCURRENT_PREFIXES = 64
MIN_SPARSE_BYTES = 4 * PREFIX_BYTES  # of a video only the table is read, so that sparse reading pays early
WEBP_EXIF_OR_XMP_FLAGS = 0b1100


@dataclass(frozen=True, slots=True)
class HeaderBlob(Blob):
    """The beginning of an image, and a way to the rest."""

    fetch_whole: Callable[[], Blob] | None = None
    ranged_file: RangedFile | None = None  # of a TIFF


def open_header_fetcher(job: Job) -> Fetcher:
    return Fetcher(
        job,
        HeaderReader(job),
        max_prefetched_blobs=MAX_CONCURRENT_PREFIXES,
        refill_below=MAX_CONCURRENT_PREFIXES // 2,
    )


class HeaderReader:
    """Reads the beginning of a source; downloads it where that is not enough."""

    def __init__(self, job: Job):
        self.downloader = Downloader(job, max_frames=0, min_sparse_bytes=MIN_SPARSE_BYTES)
        self.deadline_s = job.limits.deadline_s
        self.read_inline_source, self.close = self.downloader.read_inline_source, self.downloader.close

    @property
    def range_bytes_read(self) -> int:
        return self.downloader.range_bytes_read

    async def download(self, source: str, full_download: bool = False) -> Blob:
        header = None if full_download else await self._try_header(source)
        return header or await self.downloader.download(source, full_download)

    async def _try_header(self, source: str) -> Blob | None:
        """None where all of the source is needed, or where something is wrong that a download reports better."""
        scheme = parse_scheme(source)
        uri, pages = split_page_fragment(source)
        if scheme == "file":
            return await asyncio.to_thread(self._open_local_header, source, uri, pages)
        return None if pages else await self._fetch_remote_header(source, scheme, uri)

    def _open_local_header(self, source: str, uri: str, pages: str) -> Blob | None:
        prefix, size = read_file_prefix(path := self.downloader.resolve_local_path(uri))
        if prefix.startswith(SIZE_IN_PREFIX_SIGNATURES):
            return None if len(prefix) == size else self._build_header_blob(source, uri, prefix, size)
        kind = sniff_kind(prefix[:SNIFF_BYTES])
        if kind is None:
            return None
        check_byte_limit(size, kind, uri=redact_source(uri), limits=self.downloader.limits)
        return Blob(redact_source(uri), kind, path=path, pages=pages or find_page_words(uri))

    async def _fetch_remote_header(self, source: str, scheme: str, uri: str) -> Blob | None:
        client = self.downloader.get_client(scheme)
        prefix, size = await fetch_with_retries(lambda: client.read_prefix(uri, PREFIX_BYTES))
        if prefix and len(prefix) == size:
            kind = sniff_kind(prefix[:SNIFF_BYTES])
            check_byte_limit(size, kind, uri=redact_source(uri), limits=self.downloader.limits)
            return Blob(redact_source(uri), kind, data=prefix)
        if prefix.startswith(TIFF_SIGNATURES):
            return self._build_header_blob(source, uri, prefix, size, self._open_ranged_file(client, uri, prefix, size))
        if prefix.startswith(SIZE_IN_PREFIX_SIGNATURES) or read_webp_size(prefix):
            return self._build_header_blob(source, uri, prefix, size)
        return None

    def _build_header_blob(
        self, source: str, uri: str, prefix: bytes, size: int, ranged_file: RangedFile | None = None
    ) -> HeaderBlob:
        shown_uri = redact_source(uri)
        check_byte_limit(size, "image", uri=shown_uri, limits=self.downloader.limits)
        return HeaderBlob(
            shown_uri, "image", data=prefix, fetch_whole=lambda: self.fetch_whole(source), ranged_file=ranged_file
        )

    def fetch_whole(self, source: str) -> Blob:
        return run_on_event_loop(self.downloader.download(source, True), source, self.deadline_s)

    def _open_ranged_file(self, client: WebClient | ObjectStore, uri: str, prefix: bytes, size: int) -> RangedFile:
        def read_range(start: int, end: int) -> bytes:
            read = fetch_with_retries(lambda: client.read_range(uri, start, end))
            return run_on_event_loop(read, uri, self.deadline_s)

        return RangedFile(prefix, size, read_range)


def read_file_prefix(path: Path) -> tuple[bytes, int]:
    """The first bytes of a file, and its size. Errors are left to the download that follows."""
    with suppress(OSError):
        if path.is_file():
            with open(path, "rb") as file:
                return file.read(PREFIX_BYTES), path.stat().st_size
    return b"", 0


def read_webp_size(data: bytes) -> Size | None:
    """The size of an upright WebP. None for other formats, and where EXIF at the end may turn the image.

    >>> read_webp_size(bytes.fromhex("52494646 00000000 57454250 56503858 0a000000 10000000 7f0200 df0100"))
    (640, 480)
    """
    kind = data[12:16] if data[:4] == b"RIFF" and data[8:12] == b"WEBP" and len(data) >= 30 else b""
    if kind == b"VP8X" and not data[20] & WEBP_EXIF_OR_XMP_FLAGS:
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8L" and data[20] == 0x2F:
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF
    return None
