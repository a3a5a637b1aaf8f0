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
from pipeline.fetch.access import WEB_SCHEMES, parse_scheme, redact_source, resolve_local_path
from pipeline.fetch.blob import Blob, BlobWriter, check_byte_limit, split_page_fragment
from pipeline.fetch.range_download import ObjectChangedError, download_rest
from pipeline.fetch.retry import fetch_with_retries
from pipeline.fetch.scratch import ScratchFolder
from pipeline.fetch.sniff import SNIFF_BYTES, sniff_kind
from pipeline.job.spec import Job

MAX_PREFETCHED_BLOBS, MAX_PREFETCHED_BYTES = 16, 256 << 20
DEFAULT_MAX_FRAMES = 768  # that the families look at where the job does not say
WHITESPACE = bytes(range(33))


class Fetcher:
    """Open once per worker. `ahead` says what will be asked for; `fetch` gives it."""

    max_prefetched_blobs = MAX_PREFETCHED_BLOBS
    min_sparse_bytes: int | None = None  # bytes of a video that is not downloaded; None: as many as pay

    def __init__(self, job: Job):
        self.allowed_roots, self.allowed_hosts, self.limits = job.input.roots, job.input.hosts, job.limits
        self.scratch_folder = ScratchFolder()
        self.event_loop = fsspec.asyn.get_loop()
        self.web_session: aiohttp.ClientSession | None = None
        self.object_stores: dict[str, object_store.ObjectStore] = {}
        video = job.media.video
        self.max_frames = video.frames or video.max_frames or DEFAULT_MAX_FRAMES
        self.file_numbers = count()
        self.lock = threading.Lock()
        self.queued_sources: deque[str] = deque()
        self.prefetches: dict[str, deque[Future[Blob]]] = {}
        self.bytes_read = 0  # of what was given out, ever

    def fetch(self, source: str | bytes, *, deadline_s: float | None = None, full_download: bool = False) -> Blob:
        """FetchError says why not. The caller closes the Blob. `whole`: without holes."""
        left = self.limits.deadline_s if deadline_s is None else max(deadline_s, 0.0)
        if isinstance(source, bytes) or source[:5].lower() == "data:":
            return self._read_inline_source(source)
        future = (None if full_download else self._take_prefetched(source)) or self._start_fetch(source, full_download)
        self._start_prefetches()
        try:
            blob = future.result(left)
            self.bytes_read += 0 if blob.range_loader else blob.size_bytes
            return blob
        except (TimeoutError, CancelledError) as error:
            self._discard_fetch(future)
            raise _build_deadline_error(source, left) from error

    def prefetch(self, sources: Iterable[str | bytes]) -> None:
        """What will be fetched next, in this order. What was announced before and not fetched is forgotten."""
        with self.lock:
            forgotten = [future for futures in self.prefetches.values() for future in futures]
            self.prefetches.clear()
            self.queued_sources = deque(
                each for each in sources if isinstance(each, str) and each[:5].lower() != "data:"
            )
        for future in forgotten:
            self._discard_fetch(future)
        self._start_prefetches()

    def close(self) -> None:
        self.prefetch(())
        if self.web_session:
            asyncio.run_coroutine_threadsafe(self.web_session.close(), self.event_loop).result(5)
        self.scratch_folder.close()

    def __enter__(self) -> Fetcher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start_fetch(self, source: str, full_download: bool = False) -> Future[Blob]:
        return asyncio.run_coroutine_threadsafe(self._fetch_before_deadline(source, full_download), self.event_loop)

    def _take_prefetched(self, source: str) -> Future[Blob] | None:
        with self.lock:
            if futures := self.prefetches.get(source):
                future = futures.popleft()
                if not futures:
                    del self.prefetches[source]
                return future
            if source in self.queued_sources:
                self.queued_sources.remove(source)
        return None

    def _start_prefetches(self) -> None:
        with self.lock:
            pending = [future for futures in self.prefetches.values() for future in futures]
            held = sum(future.result().memory_bytes for future in pending if _has_blob(future))
            room = self.max_prefetched_blobs - len(pending) if held < MAX_PREFETCHED_BYTES else 0
            for _ in range(min(room, len(self.queued_sources))):
                source = self.queued_sources.popleft()
                self.prefetches.setdefault(source, deque()).append(self._start_fetch(source))

    @staticmethod
    def _discard_fetch(future: Future[Blob]) -> None:
        future.cancel()
        future.add_done_callback(lambda done: done.result().close() if _has_blob(done) else None)

    async def _fetch_before_deadline(self, source: str, full_download: bool) -> Blob:
        try:
            async with asyncio.timeout(self.limits.deadline_s):
                return await self._fetch_source(source, full_download)
        except TimeoutError as error:
            raise _build_deadline_error(source, self.limits.deadline_s) from error

    async def _fetch_source(self, source: str, full_download: bool) -> Blob:
        kind = parse_scheme(source)
        uri, pages = split_page_fragment(source)
        if kind == "file":
            return await asyncio.to_thread(self._read_local_file, uri, pages)
        try:
            return await fetch_with_retries(lambda: self._download(kind, uri, pages, full_download))
        except ObjectChangedError:
            return await fetch_with_retries(lambda: self._download(kind, uri, pages, True))

    async def _download(self, kind: str, uri: str, pages: str, full_download: bool) -> Blob:
        sink = BlobWriter(
            uri, limits=self.limits, folder=self.scratch_folder.path, file_name=str(next(self.file_numbers))
        )
        try:
            if kind in WEB_SCHEMES:
                self.web_session = self.web_session or web.open_session(self.allowed_hosts)
                rest = await web.download(
                    uri, sink, session=self.web_session, allowed_hosts=self.allowed_hosts, full_download=full_download
                )
            else:
                self.object_stores[kind] = self.object_stores.get(kind) or object_store.ObjectStore(kind)
                rest = await self.object_stores[kind].download(kind + uri[len(kind) :], sink)
            if rest and not full_download:
                counted = replace(rest, on_bytes_read=self._count_bytes)
                if blob := await sparse_video.open_sparse_video(
                    counted, sink, frame_count=self.max_frames, pages=pages, min_bytes=self.min_sparse_bytes
                ):
                    return blob
            if rest:
                await download_rest(rest, sink)
            return sink.to_blob(pages)
        except BaseException:
            sink.discard()
            raise

    def _count_bytes(self, size: int) -> None:
        self.bytes_read += size

    def _read_inline_source(self, source: str | bytes) -> Blob:
        """Bytes, and URIs that carry them."""
        data = source if isinstance(source, bytes) else decode_data_uri(source)
        sink = BlobWriter(
            redact_source(source)[:80],
            limits=self.limits,
            folder=self.scratch_folder.path,
            file_name=str(next(self.file_numbers)),
        )
        try:
            sink.write(data)
            return sink.to_blob()
        except FetchError:
            sink.discard()
            raise

    def _read_local_file(self, uri: str, pages: str) -> Blob:
        path = resolve_local_path(uri, self.allowed_roots)
        try:
            file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)  # a pipe must not hold us
            with open(file, "rb") as stream:
                facts = os.fstat(file)
                if not stat.S_ISREG(facts.st_mode):
                    raise FetchError("path", f"{redact_source(uri)}: not a file")
                head = stream.read(SNIFF_BYTES)
                found = sniff_kind(head)
                check_byte_limit(facts.st_size, found, uri=redact_source(uri), limits=self.limits)
                if found == "video":
                    return Blob(redact_source(uri), found, path=path, pages=pages)
                return Blob(redact_source(uri), found, data=head + stream.read(), pages=pages)
        except FileNotFoundError as error:
            raise FetchError("not_found", f"{redact_source(uri)}: no such file") from error
        except PermissionError as error:
            raise FetchError("denied", f"{redact_source(uri)}: may not be read") from error
        except OSError as error:
            raise FetchError("path", f"{redact_source(uri)}: {error.strerror}") from error


def decode_data_uri(uri: str) -> bytes:
    """The bytes in a `data:` URI, also where padding, alphabet or white space are not by the book.

    >>> unpack("data:image/png;base64,iVBO Rw"), unpack("data:,a%20b")
    (b'\\x89PNG', b'a b')
    """
    header, comma, payload = uri.partition(",")
    if not comma:
        raise FetchError("data_uri", f"{redact_source(uri)}: no comma after the type")
    plain = unquote_to_bytes(payload)
    if not header.lower().rstrip().endswith(";base64"):
        return plain
    letters = plain.translate(bytes.maketrans(b"-_", b"+/"), WHITESPACE).rstrip(b"=")
    try:
        return base64.b64decode(letters + b"=" * (-len(letters) % 4), validate=True)
    except binascii.Error as error:
        raise FetchError("data_uri", f"{redact_source(uri)}: not base64: {error}") from error


def _build_deadline_error(source: str, seconds: float) -> FetchError:
    return FetchError(
        "deadline", f"{redact_source(source)}: not here after {seconds:.0f} s; raise limits.deadline_s to wait longer"
    )


def _has_blob(future: Future[Blob]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None
