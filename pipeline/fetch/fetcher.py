"""Fetch the media of rows, the next ones while a worker decodes what it has. Open one Fetcher per worker.

One event loop in a thread of its own (fsspec's) does all waiting. How much is fetched ahead is bounded in number and
in bytes.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Coroutine, Iterable
from concurrent.futures import CancelledError, Future
from typing import Any, Protocol, Self, TypeVar

import fsspec.asyn

from pipeline.errors import FetchError
from pipeline.fetch.access import is_remote, redact_source
from pipeline.fetch.blob import Blob
from pipeline.fetch.downloader import Downloader
from pipeline.job.spec import Job

ResultT = TypeVar("ResultT")
DEFAULT_MAX_FRAMES = 768  # the families' limit for a video, where the job sets none
MAX_PREFETCHED_BYTES = 256 << 20
CLOSE_TIMEOUT_S = 5


class SourceReader(Protocol):
    """What a Fetcher reads sources with: a Downloader, or for planning a HeaderReader."""

    @property
    def range_bytes_read(self) -> int: ...

    async def download(self, source: str, full_download: bool = False) -> Blob: ...

    def read_inline_source(self, source: str | bytes) -> Blob: ...

    async def close(self) -> None: ...


class Fetcher:
    """`refill_below`: so few fetches must be left before more start, which saves switches between the two threads."""

    def __init__(
        self, job: Job, reader: SourceReader | None = None, *, max_prefetched_blobs: int = 16, refill_below: int = 16
    ):
        video = job.media.video
        max_frames = video.frames or video.max_frames or DEFAULT_MAX_FRAMES
        self.reader: SourceReader = reader or Downloader(job, max_frames=max_frames)
        self.max_prefetched_blobs, self.refill_below = max_prefetched_blobs, refill_below
        self.deadline_s = job.limits.deadline_s
        self.event_loop = fsspec.asyn.get_loop()
        self.lock = threading.Lock()
        self.queued_sources: deque[str] = deque()
        self.prefetches: dict[str, deque[Future[Blob]]] = {}
        self.blob_bytes_read = 0

    def fetch(self, source: str | bytes, *, deadline_s: float | None = None, full_download: bool = False) -> Blob:
        """The caller closes the Blob. A full download has all bytes of a video, even of a long one."""
        if not is_remote(source):
            return self.reader.read_inline_source(source)
        deadline_s = self.deadline_s if deadline_s is None else max(deadline_s, 0.0)
        future = (None if full_download else self._take_prefetched(source)) or self._start(source, full_download)
        self._start_prefetches()
        try:
            blob = future.result(deadline_s)
        except (TimeoutError, CancelledError) as error:
            discard_fetch(future)
            raise build_deadline_error(source, deadline_s) from error
        self.blob_bytes_read += 0 if blob.range_loader else blob.size_bytes
        return blob

    def prefetch(self, sources: Iterable[str | bytes]) -> None:
        """Announce what will be fetched next, in order. Sources announced before are forgotten."""
        with self.lock:
            dropped_fetches = [future for futures in self.prefetches.values() for future in futures]
            self.prefetches.clear()
            self.queued_sources = deque(source for source in sources if is_remote(source))
        for future in dropped_fetches:
            discard_fetch(future)
        self._start_prefetches()

    @property
    def bytes_read(self) -> int:
        return self.blob_bytes_read + self.reader.range_bytes_read

    def close(self) -> None:
        self.prefetch(())
        asyncio.run_coroutine_threadsafe(self.reader.close(), self.event_loop).result(CLOSE_TIMEOUT_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self, source: str, full_download: bool = False) -> Future[Blob]:
        return asyncio.run_coroutine_threadsafe(self._download_before_deadline(source, full_download), self.event_loop)

    async def _download_before_deadline(self, source: str, full_download: bool) -> Blob:
        try:
            async with asyncio.timeout(self.deadline_s):
                return await self.reader.download(source, full_download)
        except TimeoutError as error:
            raise build_deadline_error(source, self.deadline_s) from error

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
            futures = [future for futures in self.prefetches.values() for future in futures]
            if len(futures) > self.refill_below:
                return
            prefetched_bytes = sum(future.result().memory_bytes for future in futures if has_blob(future))
            free_places = self.max_prefetched_blobs - len(futures) if prefetched_bytes < MAX_PREFETCHED_BYTES else 0
            for _ in range(min(free_places, len(self.queued_sources))):
                source = self.queued_sources.popleft()
                self.prefetches.setdefault(source, deque()).append(self._start(source))


def run_on_event_loop(coroutine: Coroutine[Any, Any, ResultT], source: str, deadline_s: float) -> ResultT:
    """Run a coroutine that reads a source, and wait for it. Not for the event loop's own thread."""
    future = asyncio.run_coroutine_threadsafe(coroutine, fsspec.asyn.get_loop())
    try:
        return future.result(deadline_s)
    except TimeoutError as error:
        future.cancel()
        raise build_deadline_error(source, deadline_s) from error


def has_blob(future: Future[Blob]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None


def discard_fetch(future: Future[Blob]) -> None:
    future.cancel()
    future.add_done_callback(lambda done: done.result().close() if has_blob(done) else None)


def build_deadline_error(source: str, seconds: float) -> FetchError:
    problem = f"did not arrive within {seconds:.0f} s; raise limits.deadline_s to wait longer"
    return FetchError("deadline", f"{redact_source(source)}: {problem}")
