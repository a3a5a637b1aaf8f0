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
from pipeline.fetch.access import WEB, local, scheme, shown
from pipeline.fetch.blob import Blob, Sink, check_bytes, split_pages
from pipeline.fetch.fetcher import Fetcher
from pipeline.fetch.ranged_file import Ranged
from pipeline.fetch.retry import persist
from pipeline.fetch.sniff import HEAD, sniff
from pipeline.job.spec import Job
from pipeline.types import Size

HEAD_BYTES = 64 << 10  # EXIF marks, colour profiles and small previews included
EARLY = (b"\xff\xd8", b"\x89PNG", b"GIF8", b"BM")  # formats whose size stands at the beginning
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
AT_ONCE = 64  # beginnings on their way
EXIF_OR_XMP = 0b1100  # flags of WebP

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Head(Blob):
    """The beginning of a Blob, and a way to all of it."""

    whole: Callable[[], Blob] | None = None
    file: Ranged | None = None  # of what does not say all at its beginning


class Heads(Fetcher):
    """A Fetcher that brings beginnings."""

    ahead_count = AT_ONCE
    least_sparse = 4 * HEAD_BYTES  # of a video nothing but its table is wanted

    def __init__(self, job: Job):
        super().__init__(job)
        self.frames = 0
        self.plain: aiohttp.ClientSession | None = None  # for signed URLs, wherever they lead
        self.signed = True

    def close(self) -> None:
        if self.plain:
            asyncio.run_coroutine_threadsafe(self.plain.close(), self.loop).result(5)
        super().close()

    def _top_up(self) -> None:
        """Many at a time: every time, the two threads wait for each other."""
        if len(self.coming) <= AT_ONCE // 2:
            super()._top_up()

    async def _reach(self, source: str, whole: bool = False) -> Blob:
        kind = scheme(source)
        uri, pages = split_pages(source)
        if kind == "file":
            path = local(uri, self.roots)
            data, size = await asyncio.to_thread(beginning, path)
            if data and not data.startswith(EARLY) and (found := sniff(data[:HEAD])):
                check_bytes(size, found, uri=shown(uri), limits=self.limits)
                return Blob(shown(uri), found, path=path, pages=pages)
        elif whole or pages:
            return await super()._reach(source, whole)
        else:
            data, size = await persist(lambda: self._first(kind, uri))
            if data and len(data) == size:
                return Blob(shown(uri), sniff(data[:HEAD]), data=data)
        listed = data.startswith(TIFF) and kind != "file"
        if whole or len(data) == size or not (data.startswith(EARLY) or webp_size(data) or listed):
            return await super()._reach(source, whole)
        check_bytes(size, "image", uri=shown(uri), limits=self.limits)
        file = Ranged(data, size, lambda start, end: self._wait(self._part(kind, uri, start, end), uri))
        return Head(shown(uri), "image", data=data, whole=lambda: self._whole(source), file=file if listed else None)

    async def _first(self, kind: str, uri: str) -> tuple[bytes, int]:
        """Its first bytes, and how many it has; nothing of what is not a picture."""
        if kind in WEB:
            self.session = self.session or web.open_session(self.hosts)
            return await web.beginning(uri, HEAD_BYTES, session=self.session, hosts=self.hosts)
        there = self.stores[kind] = self.stores.get(kind) or object_store.Store(kind)
        url = await there.signed(kind + uri[len(kind) :]) if self.signed else None
        if url and (found := await self._get(url)):
            return found
        sink = Sink(uri, limits=self.limits, folder=self.scratch.path, name=str(next(self.names)))
        try:
            rest = await there.read(kind + uri[len(kind) :], sink, first=HEAD_BYTES)
            self.signed = self.signed and not url  # what only the store's client can get is not asked for twice again
            return b"".join(sink.parts), rest.size if rest else sink.size
        finally:
            sink.drop()

    async def _get(self, url: str) -> tuple[bytes, int] | None:
        """None, too, for what is wrong with it: the store's own client tells that better."""
        self.plain = self.plain or web.open_plain(AT_ONCE)
        try:
            async with self.plain.get(web.parse(url), headers={"Range": f"bytes=0-{HEAD_BYTES - 1}"}) as response:
                size = response.headers.get("Content-Range", "").rpartition("/")[2]
                data = await response.read() if response.status == 206 and size.isdecimal() else b""
                return (data, int(size)) if data and len(data) == min(HEAD_BYTES, int(size)) else None
        except (aiohttp.ClientError, OSError):
            return None

    async def _part(self, kind: str, uri: str, start: int, end: int) -> bytes:
        if kind not in WEB:
            return await persist(lambda: self.stores[kind].part(kind + uri[len(kind) :], start, end))
        assert self.session
        session = self.session
        return await persist(lambda: web.part(uri, start, end, session=session, hosts=self.hosts))

    def _whole(self, source: str) -> Blob:
        return self._wait(super()._reach(source, True), source)

    def _wait(self, work: Coroutine[Any, Any, T], source: str) -> T:
        future: Future[T] = asyncio.run_coroutine_threadsafe(work, self.loop)
        try:
            return future.result(self.limits.deadline_s)
        except TimeoutError as error:
            future.cancel()
            raise FetchError("deadline", f"{shown(source)}: not here after {self.limits.deadline_s:.0f} s") from error


def beginning(path: Path) -> tuple[bytes, int]:
    """The first bytes of a file, and how many it has. Whatever is wrong with it is told by who reads it whole."""
    try:
        if not path.is_file():
            return b"", 0
        with open(path, "rb") as file:
            return file.read(HEAD_BYTES), path.stat().st_size
    except OSError:
        return b"", 0


def webp_size(data: bytes) -> Size | None:
    """As it is shown; None of other formats, and where what follows the picture may say that it lies on its side.

    >>> webp_size(bytes.fromhex("52494646 00000000 57454250 56503858 0a000000 10000000 7f0200 df0100"))
    (640, 480)
    """
    kind = data[12:16] if data[:4] == b"RIFF" and data[8:12] == b"WEBP" and len(data) >= 30 else b""
    if kind == b"VP8X" and not data[20] & EXIF_OR_XMP:
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8L" and data[20] == 0x2F:
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF
    return None
