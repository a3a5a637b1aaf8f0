"""A source -> a Blob, wherever it lies, within the job's limits and rules.

One event loop in a thread of its own (fsspec's) does all waiting, so that a worker fetches what comes
next while it decodes. Connections are reused; how much is held ahead is bounded in number and bytes.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import os
import stat
import threading
from collections import deque
from collections.abc import Iterable
from concurrent.futures import CancelledError, Future
from dataclasses import replace
from itertools import count
from urllib.parse import unquote_to_bytes

import aiohttp
import fsspec.asyn

from pipeline.errors import FetchError
from pipeline.fetch import object_store, sparse_video, web
from pipeline.fetch.access import WEB, local, scheme, shown
from pipeline.fetch.blob import Blob, Sink, check_bytes, split_pages
from pipeline.fetch.range_download import Changed, download
from pipeline.fetch.retry import persist
from pipeline.fetch.scratch import Scratch
from pipeline.fetch.sniff import HEAD, sniff
from pipeline.job.spec import Job

AHEAD_COUNT, AHEAD_BYTES = 16, 256 << 20
MOST_FRAMES = 768  # that the families look at where the job does not say
SPACE = bytes(range(33))


class Fetcher:
    """Open once per worker. `ahead` says what will be asked for; `fetch` gives it."""

    ahead_count = AHEAD_COUNT
    least_sparse: int | None = None  # bytes of a video that is not downloaded; None: as many as pay

    def __init__(self, job: Job):
        self.roots, self.hosts, self.limits = job.input.roots, job.input.hosts, job.limits
        self.scratch = Scratch()
        self.loop = fsspec.asyn.get_loop()
        self.session: aiohttp.ClientSession | None = None
        self.stores: dict[str, object_store.Store] = {}
        video = job.media.video
        self.frames = video.frames or video.max_frames or MOST_FRAMES
        self.names = count()
        self.lock = threading.Lock()
        self.waiting: deque[str] = deque()
        self.coming: dict[str, deque[Future[Blob]]] = {}
        self.bytes_read = 0  # of what was given out, ever

    def fetch(self, source: str | bytes, *, deadline_s: float | None = None, whole: bool = False) -> Blob:
        """FetchError says why not. The caller closes the Blob. `whole`: without holes."""
        left = self.limits.deadline_s if deadline_s is None else max(deadline_s, 0.0)
        if isinstance(source, bytes) or source[:5].lower() == "data:":
            return self._given(source)
        future = (None if whole else self._claim(source)) or self._start(source, whole)
        self._top_up()
        try:
            blob = future.result(left)
            self.bytes_read += 0 if blob.holes else blob.size
            return blob
        except (TimeoutError, CancelledError) as error:
            self._discard(future)
            raise _late(source, left) from error

    def ahead(self, sources: Iterable[str | bytes]) -> None:
        """What will be fetched next, in this order. What was announced before and not fetched is forgotten."""
        with self.lock:
            forgotten = [future for futures in self.coming.values() for future in futures]
            self.coming.clear()
            self.waiting = deque(each for each in sources if isinstance(each, str) and each[:5].lower() != "data:")
        for future in forgotten:
            self._discard(future)
        self._top_up()

    def close(self) -> None:
        self.ahead(())
        if self.session:
            asyncio.run_coroutine_threadsafe(self.session.close(), self.loop).result(5)
        self.scratch.close()

    def __enter__(self) -> Fetcher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self, source: str, whole: bool = False) -> Future[Blob]:
        return asyncio.run_coroutine_threadsafe(self._fetch(source, whole), self.loop)

    def _claim(self, source: str) -> Future[Blob] | None:
        with self.lock:
            if futures := self.coming.get(source):
                future = futures.popleft()
                if not futures:
                    del self.coming[source]
                return future
            if source in self.waiting:
                self.waiting.remove(source)
        return None

    def _top_up(self) -> None:
        with self.lock:
            pending = [future for futures in self.coming.values() for future in futures]
            held = sum(future.result().held for future in pending if _has_blob(future))
            room = self.ahead_count - len(pending) if held < AHEAD_BYTES else 0
            for _ in range(min(room, len(self.waiting))):
                source = self.waiting.popleft()
                self.coming.setdefault(source, deque()).append(self._start(source))

    @staticmethod
    def _discard(future: Future[Blob]) -> None:
        future.cancel()
        future.add_done_callback(lambda done: done.result().close() if _has_blob(done) else None)

    async def _fetch(self, source: str, whole: bool) -> Blob:
        try:
            async with asyncio.timeout(self.limits.deadline_s):
                return await self._reach(source, whole)
        except TimeoutError as error:
            raise _late(source, self.limits.deadline_s) from error

    async def _reach(self, source: str, whole: bool) -> Blob:
        kind = scheme(source)
        uri, pages = split_pages(source)
        if kind == "file":
            return await asyncio.to_thread(self._local, uri, pages)
        try:
            return await persist(lambda: self._attempt(kind, uri, pages, whole))
        except Changed:
            return await persist(lambda: self._attempt(kind, uri, pages, True))

    async def _attempt(self, kind: str, uri: str, pages: str, whole: bool) -> Blob:
        sink = Sink(uri, limits=self.limits, folder=self.scratch.path, name=str(next(self.names)))
        try:
            if kind in WEB:
                self.session = self.session or web.open_session(self.hosts)
                rest = await web.read(uri, sink, session=self.session, hosts=self.hosts, whole=whole)
            else:
                self.stores[kind] = self.stores.get(kind) or object_store.Store(kind)
                rest = await self.stores[kind].read(kind + uri[len(kind) :], sink)
            if rest and not whole:
                counted = replace(rest, count=self._count)
                if blob := await sparse_video.attempt(
                    counted, sink, frames=self.frames, pages=pages, least=self.least_sparse
                ):
                    return blob
            if rest:
                await download(rest, sink)
            return sink.blob(pages)
        except BaseException:
            sink.drop()
            raise

    def _count(self, size: int) -> None:
        self.bytes_read += size

    def _given(self, source: str | bytes) -> Blob:
        """Bytes, and URIs that carry them."""
        data = source if isinstance(source, bytes) else unpack(source)
        sink = Sink(shown(source)[:80], limits=self.limits, folder=self.scratch.path, name=str(next(self.names)))
        try:
            sink.feed(data)
            return sink.blob()
        except FetchError:
            sink.drop()
            raise

    def _local(self, uri: str, pages: str) -> Blob:
        path = local(uri, self.roots)
        try:
            file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)  # a pipe must not hold us
            with open(file, "rb") as stream:
                facts = os.fstat(file)
                if not stat.S_ISREG(facts.st_mode):
                    raise FetchError("path", f"{shown(uri)}: not a file")
                head = stream.read(HEAD)
                found = sniff(head)
                check_bytes(facts.st_size, found, uri=shown(uri), limits=self.limits)
                if found == "video":
                    return Blob(shown(uri), found, path=path, pages=pages)
                return Blob(shown(uri), found, data=head + stream.read(), pages=pages)
        except FileNotFoundError as error:
            raise FetchError("not_found", f"{shown(uri)}: no such file") from error
        except PermissionError as error:
            raise FetchError("denied", f"{shown(uri)}: may not be read") from error
        except OSError as error:
            raise FetchError("path", f"{shown(uri)}: {error.strerror}") from error


def unpack(uri: str) -> bytes:
    """The bytes in a `data:` URI, also where padding, alphabet or white space are not by the book.

    >>> unpack("data:image/png;base64,iVBO Rw"), unpack("data:,a%20b")
    (b'\\x89PNG', b'a b')
    """
    header, comma, payload = uri.partition(",")
    if not comma:
        raise FetchError("data_uri", f"{shown(uri)}: no comma after the type")
    plain = unquote_to_bytes(payload)
    if not header.lower().rstrip().endswith(";base64"):
        return plain
    letters = plain.translate(bytes.maketrans(b"-_", b"+/"), SPACE).rstrip(b"=")
    try:
        return base64.b64decode(letters + b"=" * (-len(letters) % 4), validate=True)
    except binascii.Error as error:
        raise FetchError("data_uri", f"{shown(uri)}: not base64: {error}") from error


def _late(source: str, seconds: float) -> FetchError:
    return FetchError(
        "deadline", f"{shown(source)}: not here after {seconds:.0f} s; raise limits.deadline_s to wait longer"
    )


def _has_blob(future: Future[Blob]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None
