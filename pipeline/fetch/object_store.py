"""Download objects from stores (s3, gs, az, hf, ...) through fsspec.

One ranged read brings most images whole. Its response, or a second request to stores other than S3, tells the size
of the object; larger objects are read range by range, so that no limit is passed unnoticed. Credentials come from the
environment, never from the URI. When they have expired, the client is opened again and picks up renewed ones.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, TypeVar

import aiohttp
import fsspec

from pipeline.errors import FetchError
from pipeline.fetch.access import redact_source
from pipeline.fetch.blob import BlobWriter
from pipeline.fetch.remote_object import FIRST_READ_BYTES, ObjectChangedError, RemoteObject, require_length
from pipeline.fetch.storage_clients import (
    disable_client_retries,
    get_client_options,
    get_provider,
    load_error_types,
    translate_error,
)
from pipeline.fetch.stores import check_store
from pipeline.fetch.web import open_unrestricted_session, parse_url

ResultT = TypeVar("ResultT")
EMPTY_OBJECT_WORDS = ("InvalidRange", "requested range", "416")  # an empty object has no first byte to read
VERSION_KEYS = ("ETag", "etag", "generation", "blob_id", "last_modified", "mtime", "size")
REQUIRED_PACKAGES = {"gs": "vlbatch[gcs]", "az": "vlbatch[azure]", "oss": "ossfs"}
SIGNED_URL_LIFETIME_S = 900
MAX_SIGNED_URL_CONNECTIONS = 64


class ObjectStore:
    """One client and its connections; a worker opens one per scheme."""

    def __init__(self, scheme: str, allowed_stores: Sequence[str]):
        self.scheme, self.provider, self.allowed_stores = scheme, get_provider(scheme), allowed_stores
        self.signed_url_session: aiohttp.ClientSession | None = None
        self.use_signed_urls = self.provider == "s3"
        try:
            self.error_types: Any = load_error_types(scheme)
            self._connect()
        except ImportError as error:
            package = REQUIRED_PACKAGES.get(self.provider, error.name or str(error))
            problem = "needs a package that the workers do not have"
            raise FetchError("package", f"{scheme}:// {problem}: pip install '{package}'") from error

    def _connect(self) -> None:
        options = get_client_options(self.scheme)
        self.filesystem: Any = fsspec.filesystem(self.scheme, skip_instance_cache=True, **options)
        disable_client_retries(self.filesystem, self.scheme)

    async def download(self, uri: str, writer: BlobWriter, *, full_download: bool = False) -> RemoteObject | None:
        """Write what one read brings; returns the object if there is more of it, also for a full download."""
        path = self._to_path(uri)
        prefix, size, version = await self._translate_errors(uri, self._request_prefix(path, FIRST_READ_BYTES))
        if size > len(prefix):
            writer.check_declared_size(size)
        writer.write(prefix)

        async def fetch_range(start: int, end: int) -> bytes:
            data, _, current_version = await self._translate_errors(uri, self.request_range(path, start, end, version))
            if current_version != version:
                raise ObjectChangedError(writer.uri)
            return require_length(data, end - start, writer.uri)

        return RemoteObject(size, fetch_range) if size > len(prefix) else None

    async def read_range(self, uri: str, start: int, end: int) -> bytes:
        data, _, _ = await self._translate_errors(uri, self.request_range(self._to_path(uri), start, end, None))
        return require_length(data, end - start, redact_source(uri))

    async def read_info(self, uri: str) -> Mapping[str, Any]:
        """What the store says about an object, in the words of its client."""
        path, filesystem = self._to_path(uri), self.filesystem
        read = filesystem._info(path) if filesystem.async_impl else asyncio.to_thread(filesystem.info, path)
        info: Mapping[str, Any] = await self._translate_errors(uri, read)
        if info.get("type") == "directory":
            raise FetchError("not_found", f"{redact_source(uri)}: a folder, not an object")
        return info

    async def read_prefix(self, uri: str, max_bytes: int) -> tuple[bytes, int]:
        """The first bytes of an object, and its size. A signed URL takes a third of the time of a client's call."""
        signed_url = await self.sign_url(uri) if self.use_signed_urls else None
        if signed_url and (signed_prefix := await self._read_signed_prefix(signed_url, max_bytes)):
            return signed_prefix
        prefix, size, _ = await self._translate_errors(uri, self._request_prefix(self._to_path(uri), max_bytes))
        self.use_signed_urls = self.use_signed_urls and not signed_url  # the client can read what a signed URL cannot
        return prefix, size

    async def _read_signed_prefix(self, url: str, max_bytes: int) -> tuple[bytes, int] | None:
        """None on any error: the store's own client reports it better."""
        self.signed_url_session = self.signed_url_session or open_unrestricted_session(MAX_SIGNED_URL_CONNECTIONS)
        headers = {"Range": f"bytes=0-{max_bytes - 1}"}
        try:
            async with self.signed_url_session.get(parse_url(url), headers=headers) as response:
                size_text = response.headers.get("Content-Range", "").rpartition("/")[2]
                if response.status != 206 or not size_text.isdecimal():
                    return None
                prefix, size = await response.read(), int(size_text)
                return (prefix, size) if prefix and len(prefix) == min(max_bytes, size) else None
        except (aiohttp.ClientError, OSError):
            return None

    async def sign_url(self, uri: str) -> str | None:
        """A URL of S3 that gives anybody access for some minutes; None where signing fails."""
        bucket, key, _ = self.filesystem.split_path(self._to_path(uri))
        try:
            await self.filesystem.set_session()
            client = await self.filesystem.get_s3(bucket)
            place = {"Bucket": bucket, "Key": key}
            return str(await client.generate_presigned_url("get_object", place, SIGNED_URL_LIFETIME_S))
        except (*self.error_types, ValueError):
            return None

    async def close(self) -> None:
        if self.signed_url_session:
            await self.signed_url_session.close()

    def _to_path(self, uri: str) -> str:
        path = str(self.filesystem._strip_protocol(self.scheme + uri[len(self.scheme) :]))  # in lower case: S3://
        check_store(self.scheme, path, self.allowed_stores)
        return path

    async def _request_prefix(self, path: str, max_bytes: int) -> tuple[bytes, int, Any]:
        try:
            prefix, size, version = await self.request_range(path, 0, max_bytes, None)
        except (*self.error_types, ValueError) as error:
            is_of_empty_object = any(word in str(error) for word in EMPTY_OBJECT_WORDS)  # a path may hold any word
            if is_of_empty_object and not isinstance(error, (FileNotFoundError, PermissionError)):
                return b"", 0, None
            raise
        return require_length(prefix, min(max_bytes, size), redact_source(path)), size, version

    async def request_range(self, path: str, start: int, end: int, version: Any) -> tuple[bytes, int, Any]:
        """The bytes, the size of the whole object, and its version."""
        filesystem = self.filesystem
        if self.provider == "s3":
            return await self._request_s3_range(path, start, end, version)
        if filesystem.async_impl:
            data = await filesystem._cat_file(path, start=start, end=end)
        else:
            data = await asyncio.to_thread(filesystem.cat_file, path, start, end)
        if start == 0 and len(data) < end:
            return data, len(data), None
        info = await (filesystem._info(path) if filesystem.async_impl else asyncio.to_thread(filesystem.info, path))
        return data, info["size"], tuple(str(info.get(key)) for key in VERSION_KEYS)

    async def _request_s3_range(self, path: str, start: int, end: int, version: str | None) -> tuple[bytes, int, Any]:
        bucket, key, _ = self.filesystem.split_path(path)
        request = {"Bucket": bucket, "Key": key, "Range": f"bytes={start}-{end - 1}"}
        request |= {"IfMatch": version} if version else {}
        response = await self.filesystem._call_s3("get_object", **request)
        async with response["Body"] as body:
            data = await body.read()
        return data, int(response.get("ContentRange", "").rpartition("/")[2] or len(data)), response.get("ETag")

    async def _translate_errors(self, uri: str, request: Awaitable[ResultT]) -> ResultT:
        used_client = self.filesystem
        try:
            return await request
        except FileNotFoundError as error:
            raise FetchError("not_found", f"{redact_source(uri)}: no such object") from error
        except IsADirectoryError as error:
            raise FetchError("not_found", f"{redact_source(uri)}: a folder, not an object") from error
        except self.error_types as error:
            fetch_error = translate_error(error, uri)
            if fetch_error.kind == "credentials" and self.filesystem is used_client:  # no other request was quicker
                self._connect()
            raise fetch_error from error
