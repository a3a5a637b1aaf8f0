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
from pipeline.fetch.access import redact_source
from pipeline.fetch.blob import BlobWriter
from pipeline.fetch.range_download import FIRST_READ_BYTES, ObjectChangedError, RemoteObject, require_length
from pipeline.fetch.retry import TransientError
from pipeline.retry_policy import classify_error

RANGE_ERROR_WORDS = ("InvalidRange", "requested range", "416")  # how stores say that an object ends before it begins
VERSION_KEYS = (
    "ETag",
    "etag",
    "generation",
    "blob_id",
    "last_modified",
    "mtime",
    "size",
)  # of an object, as stores tell it
ERROR_CLASSES = {  # what the libraries raise besides OSError
    "s3": ("botocore.exceptions:BotoCoreError", "botocore.exceptions:ClientError", "aiohttp:ClientError"),
    "gs": ("gcsfs.retry:HttpError", "google.auth.exceptions:GoogleAuthError", "aiohttp:ClientError"),
    "az": ("azure.core.exceptions:AzureError",),
    # The hub's first error is a kind of its HTTP library's, whichever that is: a lost connection is one of those.
    "hf": ("huggingface_hub.errors:HfHubHTTPError", "huggingface_hub.errors:HFValidationError"),
    "oss": ("aiooss2.exceptions:OSSError", "oss2.exceptions:OssError", "aiohttp:ClientError"),
}
SCHEME_ALIASES = {"s3a": "s3", "gcs": "gs", "abfs": "az", "abfss": "az"}
REQUIRED_PACKAGES = {"gs": "vlbatch[gcs]", "az": "vlbatch[azure]", "oss": "ossfs"}
ERROR_MESSAGES = {
    "credentials": "the credentials of the workers have expired or are not valid; renew them and run again",
    "denied": "access denied; check the workers' credentials and what they allow",
    "refused": "not a name this store could have",
    "full": "no space is left on the worker",
}
SIGNED_URL_LIFETIME_S = 900
S3_OPTIONS = {
    "config_kwargs": {"max_pool_connections": 32, "retries": {"total_max_attempts": 1}},
    "use_listings_cache": False,
}


class ObjectStore:
    """Open once per worker: one client and its connections."""

    def __init__(self, scheme: str):
        self.scheme, self.provider = scheme, SCHEME_ALIASES.get(scheme, scheme)
        try:
            names = [name.split(":") for name in ERROR_CLASSES[self.provider]]
            found = [getattr(import_module(module), name) for module, name in names]
            self.error_types = (OSError, *found, *(found[0].__bases__ if self.provider == "hf" else ()))
            self._connect()
        except ImportError as error:
            package = REQUIRED_PACKAGES.get(self.provider, error.name or str(error))
            raise FetchError(
                "package", f"{scheme}:// needs a package that is not on the workers: pip install '{package}'"
            ) from error

    def _connect(self) -> None:
        self.filesystem: Any = fsspec.filesystem(
            self.scheme, skip_instance_cache=True, **(S3_OPTIONS if self.provider == "s3" else {})
        )
        if self.provider == "s3":
            self.filesystem.retries = 1

    async def download(
        self, uri: str, writer: BlobWriter, *, first_read_bytes: int = FIRST_READ_BYTES
    ) -> RemoteObject | None:
        """Feeds the sink what one read brings; gives the rest, if there is any."""
        path = self.filesystem._strip_protocol(uri)
        chunk, size, version = await self._translate_errors(uri, self._request_prefix(path, first_read_bytes))
        if size > len(chunk):
            writer.check_declared_size(size)
        writer.write(chunk)

        async def get(start: int, end: int) -> bytes:
            data, _, now = await self._translate_errors(uri, self._request_range(path, start, end, version))
            if now != version:
                raise ObjectChangedError(writer.uri)
            return require_length(data, end - start, writer.uri)

        return RemoteObject(size, get) if size > len(chunk) else None

    async def read_range(self, uri: str, start: int, end: int) -> bytes:
        path = self.filesystem._strip_protocol(uri)
        data, _, _ = await self._translate_errors(uri, self._request_range(path, start, end, None))
        return require_length(data, end - start, redact_source(uri))

    async def sign_url(self, uri: str) -> str | None:
        """A URL by which anybody can get it for some minutes; None where there is none such."""
        if self.provider != "s3":
            return None
        bucket, key, _ = self.filesystem.split_path(self.filesystem._strip_protocol(uri))
        try:
            await self.filesystem.set_session()
            client = await self.filesystem.get_s3(bucket)
            named = {"Bucket": bucket, "Key": key}
            url: str = await client.generate_presigned_url("get_object", Params=named, ExpiresIn=SIGNED_URL_LIFETIME_S)
            return url
        except (*self.error_types, ValueError):
            return None

    async def _request_prefix(self, path: str, max_bytes: int) -> tuple[bytes, int, Any]:
        try:
            chunk, size, version = await self._request_range(path, 0, max_bytes, None)
        except (*self.error_types, ValueError) as error:
            if isinstance(error, FileNotFoundError | PermissionError) or not any(
                word in str(error) for word in RANGE_ERROR_WORDS
            ):
                raise
            return b"", 0, None
        return require_length(chunk, min(max_bytes, size), redact_source(path)), size, version

    async def _request_range(self, path: str, start: int, end: int, version: Any) -> tuple[bytes, int, Any]:
        """Bytes, the size of the whole object, and what tells this version of it from others."""
        files = self.filesystem
        if self.provider == "s3":
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
        return data, info["size"], tuple(str(info.get(name)) for name in VERSION_KEYS)

    async def _translate_errors(self, uri: str, request: Any) -> tuple[bytes, int, Any]:
        used = self.filesystem
        try:
            found: tuple[bytes, int, Any] = await request
            return found
        except FileNotFoundError as error:
            raise FetchError("not_found", f"{redact_source(uri)}: no such object") from error
        except IsADirectoryError as error:
            raise FetchError("not_found", f"{redact_source(uri)}: a folder, not an object") from error
        except self.error_types as error:
            trouble = translate_error(error, uri)
            if trouble.kind == "credentials" and self.filesystem is used:
                self._connect()
            raise trouble from error


def translate_error(error: Exception, uri: str) -> FetchError:
    chain = f"{error} {error.__cause__ or ''}"
    if "PreconditionFailed" in chain or "(412)" in chain:
        return ObjectChangedError(redact_source(uri))
    kind = classify_error(error)
    if kind in retry_policy.MEDIA_POLICIES:
        return TransientError(
            kind, f"{redact_source(uri)}: {ERROR_MESSAGES.get(kind) or type(error.__cause__ or error).__name__}"
        )
    return FetchError({"refused": "uri"}.get(kind, kind), f"{redact_source(uri)}: {ERROR_MESSAGES[kind]}")
