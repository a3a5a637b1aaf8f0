"""An object in a store (s3, gs, az, hf, ...) -> its bytes, through fsspec.

One ranged read brings most pictures whole. Its answer, or for stores other than S3 a second question, tells
how much there is; what is larger is read in parts, so that no limit is passed unseen. Retries are ours alone:
each library's own on top would make a hundred requests of one, to a store that says it has too many.
Credentials are the environment's, never the URI's. When they have expired the client is made anew, which
picks up what was put in their place.
"""

from __future__ import annotations

import asyncio
from importlib import import_module
from typing import Any

import fsspec

from pipeline import retry_policy
from pipeline.errors import FetchError
from pipeline.fetch.access import shown
from pipeline.fetch.blob import Sink
from pipeline.fetch.range_download import FIRST, Changed, Rest, complete
from pipeline.fetch.retry import Passing
from pipeline.retry_policy import kind_of

RANGES = ("InvalidRange", "requested range", "416")  # how stores say that an object ends before it begins
VERSION = ("ETag", "etag", "generation", "blob_id", "last_modified", "mtime", "size")  # of an object, as stores tell it
ERRORS = {  # what the libraries raise besides OSError
    "s3": ("botocore.exceptions:BotoCoreError", "botocore.exceptions:ClientError", "aiohttp:ClientError"),
    "gs": ("gcsfs.retry:HttpError", "google.auth.exceptions:GoogleAuthError", "aiohttp:ClientError"),
    "az": ("azure.core.exceptions:AzureError",),
    # The hub's first error is a kind of its HTTP library's, whichever that is: a lost connection is one of those.
    "hf": ("huggingface_hub.errors:HfHubHTTPError", "huggingface_hub.errors:HFValidationError"),
    "oss": ("aiooss2.exceptions:OSSError", "oss2.exceptions:OssError", "aiohttp:ClientError"),
}
ALIASES = {"s3a": "s3", "gcs": "gs", "abfs": "az", "abfss": "az"}
PACKAGES = {"gs": "vlbatch[gcs]", "az": "vlbatch[azure]", "oss": "ossfs"}
SAID = {
    "credentials": "the credentials of the workers have expired or are not valid; renew them and run again",
    "denied": "access denied; check the workers' credentials and what they allow",
    "refused": "not a name this store could have",
    "full": "no space is left on the worker",
}
SIGNED_S = 900
S3 = {"config_kwargs": {"max_pool_connections": 32, "retries": {"total_max_attempts": 1}}, "use_listings_cache": False}


class Store:
    """Open once per worker: one client and its connections."""

    def __init__(self, scheme: str):
        self.scheme, self.kind = scheme, ALIASES.get(scheme, scheme)
        try:
            names = [name.split(":") for name in ERRORS[self.kind]]
            found = [getattr(import_module(module), name) for module, name in names]
            self.errors = (OSError, *found, *(found[0].__bases__ if self.kind == "hf" else ()))
            self._open()
        except ImportError as error:
            package = PACKAGES.get(self.kind, error.name or str(error))
            raise FetchError(
                "package", f"{scheme}:// needs a package that is not on the workers: pip install '{package}'"
            ) from error

    def _open(self) -> None:
        self.files: Any = fsspec.filesystem(self.scheme, skip_instance_cache=True, **(S3 if self.kind == "s3" else {}))
        if self.kind == "s3":
            self.files.retries = 1

    async def read(self, uri: str, sink: Sink, *, first: int = FIRST) -> Rest | None:
        """Feeds the sink what one read brings; gives the rest, if there is any."""
        path = self.files._strip_protocol(uri)
        chunk, size, version = await self._translating(uri, self._first(path, first))
        if size > len(chunk):
            sink.expect(size)
        sink.feed(chunk)

        async def get(start: int, end: int) -> bytes:
            data, _, now = await self._translating(uri, self._range(path, start, end, version))
            if now != version:
                raise Changed(sink.uri)
            return complete(data, end - start, sink.uri)

        return Rest(size, get) if size > len(chunk) else None

    async def part(self, uri: str, start: int, end: int) -> bytes:
        path = self.files._strip_protocol(uri)
        data, _, _ = await self._translating(uri, self._range(path, start, end, None))
        return complete(data, end - start, shown(uri))

    async def signed(self, uri: str) -> str | None:
        """A URL by which anybody can get it for some minutes; None where there is none such."""
        if self.kind != "s3":
            return None
        bucket, key, _ = self.files.split_path(self.files._strip_protocol(uri))
        try:
            await self.files.set_session()
            client = await self.files.get_s3(bucket)
            named = {"Bucket": bucket, "Key": key}
            url: str = await client.generate_presigned_url("get_object", Params=named, ExpiresIn=SIGNED_S)
            return url
        except (*self.errors, ValueError):
            return None

    async def _first(self, path: str, most: int) -> tuple[bytes, int, Any]:
        try:
            chunk, size, version = await self._range(path, 0, most, None)
        except (*self.errors, ValueError) as error:
            if isinstance(error, FileNotFoundError | PermissionError) or not any(word in str(error) for word in RANGES):
                raise
            return b"", 0, None
        return complete(chunk, min(most, size), shown(path)), size, version

    async def _range(self, path: str, start: int, end: int, version: Any) -> tuple[bytes, int, Any]:
        """Bytes, the size of the whole object, and what tells this version of it from others."""
        files = self.files
        if self.kind == "s3":
            bucket, key, _ = files.split_path(path)
            given = {"IfMatch": version} if version else {}
            reply = await files._call_s3(
                "get_object", Bucket=bucket, Key=key, Range=f"bytes={start}-{end - 1}", **given
            )
            async with reply["Body"] as body:
                data = await body.read()
            return data, int(reply.get("ContentRange", "").rpartition("/")[2] or len(data)), reply.get("ETag")
        if files.async_impl:
            data = await files._cat_file(path, start=start, end=end)
        else:
            data = await asyncio.to_thread(files.cat_file, path, start, end)
        if start == 0 and len(data) < end:
            return data, len(data), None
        info = await (files._info(path) if files.async_impl else asyncio.to_thread(files.info, path))
        return data, info["size"], tuple(str(info.get(name)) for name in VERSION)

    async def _translating(self, uri: str, work: Any) -> tuple[bytes, int, Any]:
        used = self.files
        try:
            found: tuple[bytes, int, Any] = await work
            return found
        except FileNotFoundError as error:
            raise FetchError("not_found", f"{shown(uri)}: no such object") from error
        except IsADirectoryError as error:
            raise FetchError("not_found", f"{shown(uri)}: a folder, not an object") from error
        except self.errors as error:
            trouble = translated(error, uri)
            if trouble.kind == "credentials" and self.files is used:
                self._open()
            raise trouble from error


def translated(error: Exception, uri: str) -> FetchError:
    chain = f"{error} {error.__cause__ or ''}"
    if "PreconditionFailed" in chain or "(412)" in chain:
        return Changed(shown(uri))
    kind = kind_of(error)
    if kind in retry_policy.MEDIA:
        return Passing(kind, f"{shown(uri)}: {SAID.get(kind) or type(error.__cause__ or error).__name__}")
    return FetchError({"refused": "uri"}.get(kind, kind), f"{shown(uri)}: {SAID[kind]}")
