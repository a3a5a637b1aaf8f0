"""Download one source at a time, from wherever it is, within the job's limits and access rules."""

from __future__ import annotations

import asyncio
import base64
import binascii
import os
import stat
from dataclasses import replace
from itertools import count
from pathlib import Path
from urllib.parse import unquote_to_bytes

from pipeline.errors import FetchError
from pipeline.fetch.access import WEB_SCHEMES, find_page_words, parse_scheme, redact_source, resolve_local_path
from pipeline.fetch.blob import Blob, BlobWriter, check_byte_limit, split_page_fragment
from pipeline.fetch.object_store import ObjectStore
from pipeline.fetch.remote_object import ObjectChangedError, download_rest, fetch_with_retries
from pipeline.fetch.scratch import ScratchFolder
from pipeline.fetch.sniff import SNIFF_BYTES, sniff_kind
from pipeline.fetch.sparse_video import open_sparse_video
from pipeline.fetch.web import WebClient
from pipeline.job.spec import Job

LOCAL_ERRORS: dict[type[OSError], tuple[str, str]] = {
    FileNotFoundError: ("not_found", "no such file"),
    PermissionError: ("denied", "no permission to read it"),
}
WHITESPACE = bytes(range(33))
URL_SAFE_ALPHABET = bytes.maketrans(b"-_", b"+/")


class Downloader:
    """The clients of one worker and its folder for videos. Coroutines run on a Fetcher's event loop."""

    def __init__(self, job: Job, *, max_frames: int, min_sparse_bytes: int | None = None):
        self.input, self.limits = job.input, job.limits
        self.max_frames = max_frames  # that the model looks at in a video
        self.min_sparse_bytes = min_sparse_bytes
        self.web_client = WebClient(job.input.hosts)
        self.object_stores: dict[str, ObjectStore] = {}
        self.scratch_folder = ScratchFolder()
        self.file_numbers = count()
        self.range_bytes_read = 0  # of sparse videos, after they were fetched

    def resolve_local_path(self, uri: str) -> Path:
        return resolve_local_path(uri, self.input.roots, follow_links=self.input.follow_links)

    async def download(self, source: str, full_download: bool = False) -> Blob:
        scheme = parse_scheme(source)
        uri, pages = split_page_fragment(source)
        if scheme == "file":
            return await asyncio.to_thread(self._read_local_file, uri, pages)
        try:
            return await fetch_with_retries(lambda: self._download_remote(scheme, uri, pages, full_download))
        except ObjectChangedError:
            return await fetch_with_retries(lambda: self._download_remote(scheme, uri, pages, True))

    async def _download_remote(self, scheme: str, uri: str, pages: str, full_download: bool) -> Blob:
        writer = self._create_writer(uri)
        try:
            remote_object = await self.get_client(scheme).download(uri, writer, full_download=full_download)
            if remote_object and not full_download:
                remote_object = replace(remote_object, on_bytes_read=self._count_bytes)
                video = open_sparse_video(remote_object, writer, self.max_frames, pages, self.min_sparse_bytes)
                if blob := await video:
                    return blob
            if remote_object:
                await download_rest(remote_object, writer)
            return writer.to_blob(pages)
        except BaseException:
            writer.discard()
            raise

    def get_client(self, scheme: str) -> WebClient | ObjectStore:
        if scheme in WEB_SCHEMES:
            return self.web_client
        return self.get_object_store(scheme)

    def get_object_store(self, scheme: str) -> ObjectStore:
        if scheme not in self.object_stores:
            self.object_stores[scheme] = ObjectStore(scheme, self.input.stores)
        return self.object_stores[scheme]

    def read_inline_source(self, source: str | bytes) -> Blob:
        writer = self._create_writer(redact_source(source)[:80])
        try:
            writer.write(source if isinstance(source, bytes) else decode_data_uri(source))
            return writer.to_blob()
        except FetchError:
            writer.discard()
            raise

    def _read_local_file(self, uri: str, pages: str) -> Blob:
        path, shown_uri, pages = self.resolve_local_path(uri), redact_source(uri), pages or find_page_words(uri)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)  # pipes do not block
            with open(descriptor, "rb") as file:
                status = os.fstat(descriptor)
                if not stat.S_ISREG(status.st_mode):
                    raise FetchError("path", f"{shown_uri}: not a file")
                prefix = file.read(SNIFF_BYTES)
                kind = sniff_kind(prefix)
                check_byte_limit(status.st_size, kind, uri=shown_uri, limits=self.limits)
                if kind == "video":
                    return Blob(shown_uri, kind, path=path, pages=pages)
                return Blob(shown_uri, kind, data=prefix + file.read(), pages=pages)
        except OSError as error:
            raise translate_local_error(error, shown_uri) from error

    def _create_writer(self, uri: str) -> BlobWriter:
        return BlobWriter(uri, limits=self.limits, path=self.scratch_folder.path / str(next(self.file_numbers)))

    def _count_bytes(self, size: int) -> None:
        self.range_bytes_read += size

    async def close(self) -> None:
        clients: list[WebClient | ObjectStore] = [self.web_client, *self.object_stores.values()]
        for client in clients:
            await client.close()
        self.scratch_folder.close()


def translate_local_error(error: OSError, shown_uri: str) -> FetchError:
    kind, problem = LOCAL_ERRORS.get(type(error), ("path", str(error.strerror)))
    return FetchError(kind, f"{shown_uri}: {problem}")


def decode_data_uri(uri: str) -> bytes:
    """Accepts missing padding, the URL-safe alphabet and white space.

    >>> decode_data_uri("data:image/png;base64,iVBO Rw"), decode_data_uri("data:,a%20b")
    (b'\\x89PNG', b'a b')
    """
    header, comma, payload = uri.partition(",")
    if not comma:
        raise FetchError("data_uri", f"{redact_source(uri)}: no comma after the type")
    data = unquote_to_bytes(payload)
    if not header.lower().rstrip().endswith(";base64"):
        return data
    letters = data.translate(URL_SAFE_ALPHABET, WHITESPACE).rstrip(b"=")
    try:
        return base64.b64decode(letters + b"=" * (-len(letters) % 4), validate=True)
    except binascii.Error as error:
        raise FetchError("data_uri", f"{redact_source(uri)}: not base64: {error}") from error
