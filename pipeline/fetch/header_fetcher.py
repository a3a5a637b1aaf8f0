"""A source -> the beginning of its bytes, which is enough to know a picture's size; the whole only when that is not.

The same rules and limits as fetching. Of JPEG, PNG, GIF, BMP and WebP one ranged read brings enough, of MP4 and
QuickTime the table of their frames; files on this machine are opened where they lie. A TIFF is read where it
lists its pages. HEIC, AVIF and PDF, animated pictures, WebP with EXIF (it stands at the end) and other videos come
whole from stores and servers.
S3 is asked through signed URLs: a call of its client costs three times as much.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import aiohttp

from pipeline.errors import FetchError
from pipeline.fetch import object_store, web
from pipeline.fetch.access import WEB_SCHEMES, parse_scheme, redact_source, resolve_local_path
from pipeline.fetch.blob import Blob, BlobWriter, check_byte_limit, split_page_fragment
from pipeline.fetch.fetcher import Fetcher
from pipeline.fetch.ranged_file import RangedFile
from pipeline.fetch.retry import fetch_with_retries
from pipeline.fetch.sniff import SNIFF_BYTES, sniff_kind
from pipeline.job.spec import Job
from pipeline.types import Size

PREFIX_BYTES = 64 << 10  # EXIF marks, colour profiles and small previews included
SIZE_IN_PREFIX_SIGNATURES = (b"\xff\xd8", b"\x89PNG", b"GIF8", b"BM")  # formats whose size stands at the beginning
TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
MAX_CONCURRENT_PREFIXES = 64  # beginnings on their way
WEBP_EXIF_OR_XMP_FLAGS = 0b1100  # flags of WebP

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class HeaderBlob(Blob):
    """The beginning of a Blob, and a way to all of it."""

    fetch_whole: Callable[[], Blob] | None = None
    ranged_file: RangedFile | None = None  # of what does not say all at its beginning


class HeaderFetcher(Fetcher):
    """A Fetcher that brings beginnings."""

    max_prefetched_blobs = MAX_CONCURRENT_PREFIXES
    min_sparse_bytes = 4 * PREFIX_BYTES  # of a video nothing but its table is wanted

    def __init__(self, job: Job):
        super().__init__(job)
        self.max_frames = 0
        self.unrestricted_session: aiohttp.ClientSession | None = None  # for signed URLs, wherever they lead
        self.use_signed_urls = True

    def close(self) -> None:
        if self.unrestricted_session:
            asyncio.run_coroutine_threadsafe(self.unrestricted_session.close(), self.event_loop).result(5)
        super().close()

    def _start_prefetches(self) -> None:
        """Many at a time: every time, the two threads wait for each other."""
        if len(self.prefetches) <= MAX_CONCURRENT_PREFIXES // 2:
            super()._start_prefetches()

    async def _fetch_source(self, source: str, full_download: bool = False) -> Blob:
        kind = parse_scheme(source)
        uri, pages = split_page_fragment(source)
        if kind == "file":
            path = resolve_local_path(uri, self.allowed_roots)
            data, size = await asyncio.to_thread(read_file_prefix, path)
            if data and not data.startswith(SIZE_IN_PREFIX_SIGNATURES) and (found := sniff_kind(data[:SNIFF_BYTES])):
                check_byte_limit(size, found, uri=redact_source(uri), limits=self.limits)
                return Blob(redact_source(uri), found, path=path, pages=pages)
        elif full_download or pages:
            return await super()._fetch_source(source, full_download)
        else:
            data, size = await fetch_with_retries(lambda: self._fetch_prefix(kind, uri))
            if data and len(data) == size:
                return Blob(redact_source(uri), sniff_kind(data[:SNIFF_BYTES]), data=data)
        listed = data.startswith(TIFF_SIGNATURES) and kind != "file"
        if (
            full_download
            or len(data) == size
            or not (data.startswith(SIZE_IN_PREFIX_SIGNATURES) or read_webp_size(data) or listed)
        ):
            return await super()._fetch_source(source, full_download)
        check_byte_limit(size, "image", uri=redact_source(uri), limits=self.limits)
        file = RangedFile(data, size, lambda start, end: self._wait_for(self._fetch_range(kind, uri, start, end), uri))
        return HeaderBlob(
            redact_source(uri),
            "image",
            data=data,
            fetch_whole=lambda: self._fetch_whole(source),
            ranged_file=file if listed else None,
        )

    async def _fetch_prefix(self, kind: str, uri: str) -> tuple[bytes, int]:
        """Its first bytes, and how many it has; nothing of what is not a picture."""
        if kind in WEB_SCHEMES:
            self.web_session = self.web_session or web.open_session(self.allowed_hosts)
            return await web.read_prefix(uri, PREFIX_BYTES, session=self.web_session, allowed_hosts=self.allowed_hosts)
        there = self.object_stores[kind] = self.object_stores.get(kind) or object_store.ObjectStore(kind)
        url = await there.sign_url(kind + uri[len(kind) :]) if self.use_signed_urls else None
        if url and (found := await self._fetch_signed_prefix(url)):
            return found
        sink = BlobWriter(
            uri, limits=self.limits, folder=self.scratch_folder.path, file_name=str(next(self.file_numbers))
        )
        try:
            rest = await there.download(kind + uri[len(kind) :], sink, first_read_bytes=PREFIX_BYTES)
            self.use_signed_urls = (
                self.use_signed_urls and not url
            )  # what only the store's client can get is not asked for twice again
            return b"".join(sink.buffered_pieces), rest.size_bytes if rest else sink.received_bytes
        finally:
            sink.discard()

    async def _fetch_signed_prefix(self, url: str) -> tuple[bytes, int] | None:
        """None, too, for what is wrong with it: the store's own client tells that better."""
        self.unrestricted_session = self.unrestricted_session or web.open_unrestricted_session(MAX_CONCURRENT_PREFIXES)
        try:
            async with self.unrestricted_session.get(
                web.parse_url(url), headers={"Range": f"bytes=0-{PREFIX_BYTES - 1}"}
            ) as response:
                size = response.headers.get("Content-Range", "").rpartition("/")[2]
                data = await response.read() if response.status == 206 and size.isdecimal() else b""
                return (data, int(size)) if data and len(data) == min(PREFIX_BYTES, int(size)) else None
        except (aiohttp.ClientError, OSError):
            return None

    async def _fetch_range(self, kind: str, uri: str, start: int, end: int) -> bytes:
        if kind not in WEB_SCHEMES:
            return await fetch_with_retries(
                lambda: self.object_stores[kind].read_range(kind + uri[len(kind) :], start, end)
            )
        assert self.web_session
        session = self.web_session
        return await fetch_with_retries(
            lambda: web.read_range(uri, start, end, session=session, allowed_hosts=self.allowed_hosts)
        )

    def _fetch_whole(self, source: str) -> Blob:
        return self._wait_for(super()._fetch_source(source, True), source)

    def _wait_for(self, coroutine: Coroutine[Any, Any, T], source: str) -> T:
        future: Future[T] = asyncio.run_coroutine_threadsafe(coroutine, self.event_loop)
        try:
            return future.result(self.limits.deadline_s)
        except TimeoutError as error:
            future.cancel()
            raise FetchError(
                "deadline", f"{redact_source(source)}: not here after {self.limits.deadline_s:.0f} s"
            ) from error


def read_file_prefix(path: Path) -> tuple[bytes, int]:
    """The first bytes of a file, and how many it has. Whatever is wrong with it is told by who reads it whole."""
    try:
        if not path.is_file():
            return b"", 0
        with open(path, "rb") as file:
            return file.read(PREFIX_BYTES), path.stat().st_size
    except OSError:
        return b"", 0


def read_webp_size(data: bytes) -> Size | None:
    """As it is shown; None of other formats, and where what follows the picture may say that it lies on its side.

    >>> webp_size(bytes.fromhex("52494646 00000000 57454250 56503858 0a000000 10000000 7f0200 df0100"))
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
