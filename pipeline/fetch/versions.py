"""Reads which version of a file a URI leads to, so that a picture that is replaced under the same URI is noticed.

Access rules and limits are those of a download. Web servers are asked for the first byte, since a signed URL allows no
other method than GET.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from pipeline.errors import FetchError
from pipeline.fetch.access import WEB_SCHEMES, parse_scheme, redact_source
from pipeline.fetch.blob import split_page_fragment
from pipeline.fetch.downloader import Downloader, translate_local_error
from pipeline.fetch.fetcher import CLOSE_TIMEOUT_S, build_deadline_error, run_on_event_loop
from pipeline.fetch.remote_object import fetch_with_retries
from pipeline.fetch.storage_clients import get_version
from pipeline.job.spec import Job

Version = str | FetchError  # the error says why it is not known
MAX_CONCURRENT_READS = 64
VERSION_HEADERS = {"etag": "ETag", "mtime": "Last-Modified"}


class VersionReader:
    """Holds connections; one for each worker. `known_versions` are those of a listing, which are not read again."""

    def __init__(self, job: Job, known_versions: Mapping[str, str] | None = None):
        self.kind, self.deadline_s = job.input.version, job.limits.deadline_s
        self.known_versions = known_versions or {}
        self.downloader = Downloader(job, max_frames=0)

    def read_versions(self, uris: Sequence[str]) -> list[Version]:
        unread = list(dict.fromkeys(uri for uri in uris if uri not in self.known_versions))
        versions: dict[str, Version] = {}
        if unread:
            rounds = -(-len(unread) // MAX_CONCURRENT_READS)
            read = run_on_event_loop(self._read_all(unread), unread[0], self.deadline_s * rounds + CLOSE_TIMEOUT_S)
            versions = dict(zip(unread, read, strict=True))
        return [versions[uri] if uri in versions else self.known_versions[uri] for uri in uris]

    async def _read_all(self, uris: Sequence[str]) -> list[Version]:
        places = asyncio.Semaphore(MAX_CONCURRENT_READS)

        async def read_one(uri: str) -> Version:
            async with places:
                try:
                    async with asyncio.timeout(self.deadline_s):
                        return await self._read_version(uri)
                except TimeoutError:
                    return build_deadline_error(uri, self.deadline_s)
                except FetchError as error:
                    return error

        return await asyncio.gather(*map(read_one, uris))

    async def _read_version(self, source: str) -> str:
        scheme = parse_scheme(source)
        uri, _ = split_page_fragment(source)
        version: str | None
        if scheme == "file":
            version = await asyncio.to_thread(self._read_local_version, uri)
        elif scheme in WEB_SCHEMES:
            header = VERSION_HEADERS[self.kind]
            version = await fetch_with_retries(lambda: self.downloader.web_client.read_header(uri, header))
        else:
            info = await fetch_with_retries(lambda: self.downloader.get_object_store(scheme).read_info(uri))
            version = get_version(info, self.kind)
        if version:
            return version
        advice = "choose another input.version, or none"
        raise FetchError("no_version", f"{redact_source(source)}: its server tells no {self.kind}; {advice}")

    def _read_local_version(self, uri: str) -> str:
        try:
            status = os.stat(self.downloader.resolve_local_path(uri))
        except OSError as error:
            raise translate_local_error(error, redact_source(uri)) from error
        if self.kind == "mtime":
            return datetime.fromtimestamp(status.st_mtime, UTC).isoformat()
        return f"{status.st_mtime_ns:x}-{status.st_size:x}"  # as web servers make one

    def close(self) -> None:
        run_on_event_loop(self.downloader.close(), "", CLOSE_TIMEOUT_S)
