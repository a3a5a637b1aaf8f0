"""Fetch the media of rows, the next ones ahead of time. Open one Fetcher per worker."""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.fetch.blob import Blob
from pipeline.fetch.data_uri import is_remote
from pipeline.fetch.downloader import Downloader
from pipeline.fetch.fetch_queue import FetchQueue
from pipeline.job.spec import Job

MAX_PREFETCHED_BLOBS = 16
DEFAULT_MAX_FRAMES = 768  # the families' limit for a video, where the job sets none


class Fetcher:
    def __init__(self, job: Job):
        video = job.media.video
        self.downloader = Downloader(job, max_frames=video.frames or video.max_frames or DEFAULT_MAX_FRAMES)
        self.queue = FetchQueue(
            self.downloader.download, deadline_s=job.limits.deadline_s, max_blobs=MAX_PREFETCHED_BLOBS
        )

    def fetch(self, source: str | bytes, *, deadline_s: float | None = None, full_download: bool = False) -> Blob:
        """The caller closes the Blob. A full download has all bytes of a video, even of a long one."""
        if not is_remote(source):
            return self.downloader.read_inline_source(source)
        return self.queue.fetch(source, deadline_s, full_download)

    def prefetch(self, sources: Iterable[str | bytes]) -> None:
        """Announce what will be fetched next, in order. Sources announced before are forgotten."""
        self.queue.prefetch(sources)

    @property
    def bytes_read(self) -> int:
        return self.queue.bytes_read + self.downloader.range_bytes_read

    def close(self) -> None:
        self.queue.close(self.downloader.close())

    def __enter__(self) -> Fetcher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
